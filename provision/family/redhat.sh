# shellcheck shell=sh
# The package manager of the Red Hat family, behind the words that the steps use: dnf 4 (EL9, EL10), dnf 5 (Fedora).
# Both wait for the lock of another dnf by themselves.

# pkg_installed NAME[-VERSION]: true when the package, or one that provides the name, is installed.
pkg_installed() { rpm --quiet -q "$1" || rpm --quiet -q --whatprovides "$1"; }

# pkg_version NAME VERSION: prints what pkg_install takes for a package of this upstream version.
pkg_version() { say "$1-$2"; }

dnf_do() { dnf -y --setopt=install_weak_deps=False --setopt=tsflags=nodocs "$@"; }

# pkg_install NAME[-VERSION]...: installs those that are missing, without weak dependencies and documents.
pkg_install() {
    missing=""
    for name in "$@"; do
        pkg_installed "$name" || missing="$missing $name"
    done
    # shellcheck disable=SC2086 # a list of names
    [ -z "$missing" ] || dnf_do install $missing
}

# pkg_remove NAME...: removes those that are installed.
pkg_remove() {
    for name in "$@"; do
        ! rpm --quiet -q "$name" || dnf_do remove "$name"
    done
}

# pkg_upgrade: brings everything to the newest version.
pkg_upgrade() { dnf_do --refresh upgrade; }

# pkg_wait: returns when nobody else installs; dnf itself waits.
pkg_wait() { :; }

# pkg_hold NAME...: keeps those that are installed at their version. dnf 5 has versionlock built in, dnf 4 as a plugin.
pkg_hold() {
    dnf --quiet --disablerepo='*' versionlock list > /dev/null 2>&1 || pkg_install python3-dnf-plugin-versionlock
    for name in "$@"; do
        # Without repositories: what is installed is what is locked.
        ! rpm --quiet -q "$name" || dnf --quiet --disablerepo='*' versionlock add "$name"
    done
}

# pkg_clean: removes what the package manager can fetch again.
pkg_clean() {
    dnf --quiet clean all
    rm -rf /var/cache/dnf/* /var/cache/yum/* /var/cache/libdnf5/*
    rm -f /var/log/dnf*.log* /var/log/hawkey.log* /var/lib/rpm/__db.*
}

# pkg_repository NAME URI SUITE COMPONENTS KEY: adds a repository, trusted for this one armored key only.
pkg_repository() {
    put "/etc/pki/rpm-gpg/RPM-GPG-KEY-imagebuilder-$1" < "$5"
    printf '[imagebuilder-%s]\nname=%s\nbaseurl=%s\nenabled=1\ngpgcheck=1\ngpgkey=file://%s\n' "$1" "$1" "$2" \
        "/etc/pki/rpm-gpg/RPM-GPG-KEY-imagebuilder-$1" | put "/etc/yum.repos.d/imagebuilder-$1.repo"
}

# pkg_repositories_forget: removes what pkg_repository added.
pkg_repositories_forget() { rm -f /etc/yum.repos.d/imagebuilder-*.repo /etc/pki/rpm-gpg/RPM-GPG-KEY-imagebuilder-*; }

# tool_package PROGRAM: prints the name of the package that has a program.
tool_package() {
    case $1 in
        growpart) say cloud-utils-growpart ;;
        gpg) say gnupg2 ;;
        restorecon) say policycoreutils ;;
        selinuxenabled | matchpathcon) say libselinux-utils ;;
        *) say "$1" ;;
    esac
}

# shellcheck source=/dev/null
. "${IB_PROVISION:?}/family/redhat/system.sh"
