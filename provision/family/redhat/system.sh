# shellcheck shell=sh
# What else is particular to the Red Hat family: services, network, boot, SELinux.

# initramfs_setup MODULES...: has every initramfs from now on made for any machine, with drivers added ("most": all).
# dracut has no strict list that is safe with every layout of the root (LVM, XFS, btrfs): its generic choice stays.
initramfs_setup() {
    want_tool zstd
    added=""
    kernel=$(kernel_newest)
    if [ "$1" != most ]; then
        for module in "$@"; do
            ! modinfo --set-version "$kernel" "$module" > /dev/null 2>&1 || added="$added $module"
        done
    fi
    printf 'hostonly="no"\ncompress="zstd"\n%s' "${added:+add_drivers+=\"$added \"
}" | put /etc/dracut.conf.d/90-imagebuilder.conf
}

# initramfs_build: makes the initramfs once per kernel.
initramfs_build() {
    for kernel in /lib/modules/*; do
        kernel=${kernel##*/}
        [ -e "/boot/vmlinuz-$kernel" ] || die "kernel modules $kernel have no /boot/vmlinuz-$kernel"
        dracut --force --kver "$kernel"
    done
}

# default_timers: prints the units that fetch or install on their own.
default_timers() {
    say dnf-makecache.timer dnf-makecache.service dnf-automatic.timer dnf-automatic-install.timer \
        dnf-automatic-download.timer dnf-automatic-notifyonly.timer dnf5-automatic.timer
}

# default_timers_off: nothing fetches or installs on its own on a node.
default_timers_off() {
    # shellcheck disable=SC2046 # a list of names
    service_mask $(default_timers)
    service_mask_present insights-client.timer insights-client-boot.service fwupd-refresh.timer
}

firewall_off() { service_mask firewalld.service; } # also where a package brings it later

# network_defaults: NetworkManager reads only what nobody else can. nm-cloud-setup takes pods' routes away.
network_defaults() {
    chmod 0600 /etc/NetworkManager/system-connections/imagebuilder-dhcp.nmconnection
    service_mask nm-cloud-setup.service nm-cloud-setup.timer
}

# resolver_default: NetworkManager writes the file at boot.
resolver_default() { [ -L /etc/resolv.conf ] || rm -f /etc/resolv.conf; }

# network_forget: removes the network configuration of the machine that built: keyfiles with their uuid=, leases, keys.
network_forget() {
    for file in /etc/NetworkManager/system-connections/* /etc/sysconfig/network-scripts/ifcfg-*; do
        case $file in */imagebuilder-dhcp.nmconnection | */ifcfg-lo) ;; *) rm -f "$file" ;; esac
    done
    rm -rf /var/lib/NetworkManager/*
}

# grow_root_install: EL's systemd has no systemd-repart, and its images' roots are of every layout.
grow_root_install() {
    want_tool growpart
    service_install grow-part
}

# kernel_remove VERSION: removes a kernel that does not run.
kernel_remove() {
    # shellcheck disable=SC2046 # a list of names
    pkg_remove $(rpm -qa --queryformat '%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}\n' 'kernel*' | grep -F -e "-$1")
}

# relabel PATH...: gives files the SELinux labels that the policy has for them; in a tree without SELinux nothing can.
relabel() { ! command -v selinuxenabled > /dev/null || ! selinuxenabled || restorecon -R -i "$@"; }

# selinux: prints whether containers are confined by SELinux.
selinux() { say true; }

# locale_default: its PAM has no file that must be there.
locale_default() { :; }
