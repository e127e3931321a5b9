# shellcheck shell=sh
# The package manager of the Debian family (Debian, Ubuntu), behind the words that the steps use.

export NEEDRESTART_SUSPEND=1 # Ubuntu's apt hook asks which services to restart

# pkg_installed NAME[=VERSION]: true when the package is installed and configured. VERSION is a pattern.
pkg_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "${1%%=*}" 2> /dev/null)" = installed ] || return 1
    case $1 in *=*) ;; *) return 0 ;; esac
    # shellcheck disable=SC2254 # a pattern
    case $(dpkg-query -W -f '${Version}' "${1%%=*}") in ${1#*=}) ;; *) return 1 ;; esac
}

# pkg_version NAME VERSION: prints what pkg_install takes for a package of this upstream version.
pkg_version() { say "$1=$2-*"; }

apt_do() {
    apt-get -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Dpkg::Options::=--force-confold \
        --no-install-recommends "$@"
}

# pkg_install NAME[=VERSION]...: installs those that are missing, without recommendations.
pkg_install() {
    missing=""
    for name in "$@"; do
        pkg_installed "$name" || missing="$missing $name"
    done
    [ -n "$missing" ] || return 0
    [ -n "${IB_REPOSITORY_READY:-}" ] || apt-get -o DPkg::Lock::Timeout=300 update
    set -f # a pattern of a version is not one of files
    # shellcheck disable=SC2086 # a list of names
    apt_do install $missing
    set +f
}

# pkg_remove NAME...: removes those that are installed, with their configuration.
pkg_remove() {
    for name in "$@"; do
        ! pkg_installed "$name" || apt_do purge "$name"
    done
}

# pkg_upgrade: brings everything to the newest version.
pkg_upgrade() {
    apt-get -o DPkg::Lock::Timeout=300 update
    apt_do dist-upgrade
}

# pkg_wait: returns when nobody else installs.
pkg_wait() { apt-get -o DPkg::Lock::Timeout=900 check; }

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
    rm -f /etc/apt/apt.conf.d/99mmdebstrap /etc/dpkg/dpkg.cfg.d/99mmdebstrap
    rm -rf /var/log/apt
}

# pkg_repository NAME URI SUITE COMPONENTS KEY: adds a repository, trusted for this one armored key only.
pkg_repository() {
    put "/etc/apt/keyrings/imagebuilder-$1.asc" < "$5"
    printf 'Types: deb\nURIs: %s\nSuites: %s\n%sSigned-By: %s\n' "$2" "${3:-/}" "${4:+Components: $4
}" "/etc/apt/keyrings/imagebuilder-$1.asc" | put "/etc/apt/sources.list.d/imagebuilder-$1.sources"
}

# pkg_repositories_forget: removes what pkg_repository added.
pkg_repositories_forget() { rm -f /etc/apt/sources.list.d/imagebuilder-*.sources /etc/apt/keyrings/imagebuilder-*.asc; }

# tool_package PROGRAM: prints the name of the package that has a program.
tool_package() {
    case $1 in
        growpart) say cloud-guest-utils ;;
        *) say "$1" ;;
    esac
}

# shellcheck source=/dev/null
. "${IB_PROVISION:?}/family/debian/system.sh"
