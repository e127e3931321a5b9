# shellcheck shell=sh
# What else is particular to the Debian family (Debian, Ubuntu): services, network, boot.

# initramfs_setup MODULES...: writes the driver list ("most" for every driver) of every initramfs that is made from now on.
initramfs_setup() {
    if [ "$1" = most ]; then
        printf 'MODULES=most\n'
    else
        printf 'MODULES=list\n'
    fi | put /etc/initramfs-tools/conf.d/imagebuilder-modules
    printf 'COMPRESS=zstd\nCOMPRESSLEVEL=3\n' | put /etc/initramfs-tools/conf.d/imagebuilder-compress
    if [ "$1" != most ]; then
        printf '%s\n' "$@" | put /etc/initramfs-tools/modules
    fi
}

# initramfs_build: makes the initramfs once per kernel.
initramfs_build() {
    for kernel in /lib/modules/*; do
        kernel=${kernel##*/}
        [ -e "/boot/vmlinuz-$kernel" ] || die "kernel modules $kernel have no /boot/vmlinuz-$kernel"
        # The time of the kernel: else the archive in there has numbers and times of this build (mkinitramfs(8)).
        SOURCE_DATE_EPOCH=$(stat -c %Y "/boot/vmlinuz-$kernel") update-initramfs -c -k "$kernel"
    done
}

# default_timers: prints the units that fetch or install on their own.
default_timers() {
    say apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service unattended-upgrades.service
}

# default_timers_off: nothing fetches or installs on its own on a node. The second list is Ubuntu's.
default_timers_off() {
    # shellcheck disable=SC2046 # a list of names
    service_mask $(default_timers)
    service_mask_present motd-news.timer ua-timer.timer ubuntu-advantage.service apt-news.service esm-cache.service \
        update-notifier-download.timer update-notifier-motd.timer fwupd-refresh.timer
    printf 'APT::Periodic::Enable "0";\n' | put /etc/apt/apt.conf.d/90imagebuilder-no-periodic
    [ ! -e /etc/default/motd-news ] || printf 'ENABLED=0\n' | put /etc/default/motd-news
}

firewall_off() { service_mask_present ufw.service; }

# network_defaults: DHCP through systemd-networkd, on Ubuntu too: what cloud-init hands to netplan there comes first
# in networkd's order (10-netplan-*), and without it the family's own file serves. One way, and no netplan file to keep.
network_defaults() { machine_runs || resolver_default; } # a machine needs its resolver until the build ends

# resolver_default: names are looked up by systemd-resolved.
resolver_default() { ln -sfn ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf; }

# network_forget: removes the network configuration of the machine that built, which cloud-init or an installer wrote.
network_forget() {
    rm -f /etc/netplan/50-cloud-init.yaml /etc/netplan/00-installer-config*.yaml /etc/netplan/01-netcfg.yaml \
        /etc/network/interfaces.d/50-cloud-init
    [ ! -e /etc/network/interfaces ] \
        || printf 'source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n' | put /etc/network/interfaces
}

# grow_root_install: the root grows at boot by systemd-repart, which makes a partition where none has the type "root":
# that is sure only of disks that we wrote ourselves. On those of others, growpart does it.
grow_root_install() {
    if machine_runs; then
        want_tool growpart
        service_install grow-part
    else
        service_install grow-root
    fi
}

# kernel_remove VERSION: removes a kernel that does not run.
kernel_remove() {
    # shellcheck disable=SC2046 # a list of names
    pkg_remove $(dpkg-query -W -f '${Package}\n' "linux-*-$1")
}

# relabel PATH...: AppArmor has no labels.
relabel() { :; }

# selinux: prints whether containers are confined by SELinux.
selinux() { say false; }

# locale_default: sshd's pam_env reads the file, and complains of each login without it. It may be a link to another.
locale_default() {
    mkdir -p /etc/default
    [ -s /etc/default/locale ] || say LANG=C.UTF-8 > /etc/default/locale
}
