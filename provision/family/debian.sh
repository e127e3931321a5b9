# shellcheck shell=sh
# The Debian family's package manager, behind the words that the steps use.

# pkg_installed NAME: true when the package is installed and configured.
pkg_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2> /dev/null)" = installed ]; }

# pkg_install NAME...: installs those that are missing, without recommendations.
pkg_install() {
    missing=""
    for name in "$@"; do
        pkg_installed "$name" || missing="$missing $name"
    done
    [ -n "$missing" ] || return 0
    [ -n "${IB_REPOSITORY_READY:-}" ] || apt-get -o DPkg::Lock::Timeout=300 update
    # shellcheck disable=SC2086 # a list of names
    apt-get -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold \
        --no-install-recommends install $missing
}

# pkg_hold NAME...: keeps those that are installed at their version.
pkg_hold() {
    for name in "$@"; do
        ! pkg_installed "$name" || apt-mark hold "$name" > /dev/null
    done
}

# pkg_clean: removes what the package manager can fetch again.
pkg_clean() {
    apt-get clean
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old
    rm -f /var/log/dpkg.log /var/log/alternatives.log /var/log/bootstrap.log
    rm -rf /var/log/apt
}

# initramfs_build MODULES...: writes the driver list ("most" for every driver) and makes the initramfs once per kernel.
initramfs_build() {
    if [ "$1" = most ]; then
        printf 'MODULES=most\n'
    else
        printf 'MODULES=list\n'
    fi | put /etc/initramfs-tools/conf.d/imagebuilder-modules
    printf 'COMPRESS=zstd\nCOMPRESSLEVEL=3\n' | put /etc/initramfs-tools/conf.d/imagebuilder-compress
    if [ "$1" != most ]; then
        printf '%s\n' "$@" | put /etc/initramfs-tools/modules
    fi
    for kernel in /lib/modules/*; do
        kernel=${kernel##*/}
        [ -e "/boot/vmlinuz-$kernel" ] || die "kernel modules $kernel have no /boot/vmlinuz-$kernel"
        update-initramfs -c -k "$kernel"
    done
}

# default_timers_off: nothing fetches or installs on its own on a node.
default_timers_off() {
    service_mask apt-daily.timer apt-daily-upgrade.timer apt-daily.service apt-daily-upgrade.service \
        unattended-upgrades.service
    printf 'APT::Periodic::Enable "0";\n' | put /etc/apt/apt.conf.d/90imagebuilder-no-periodic
}
