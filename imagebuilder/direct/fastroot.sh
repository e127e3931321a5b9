#!/bin/sh
# Configures packages that were unpacked without dpkg. Runs inside their root tree; see fastroot.py.
# usage: fastroot.sh ARCH RUNNING_VERSION PACKAGE/KEY... (in the order of their dependencies)
set -eu
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true DPKG_ROOT='' DPKG_ADMINDIR=/var/lib/dpkg
arch=$1
version=$2
shift 2

# What dpkg says to a maintainer script (dpkg(1), "ENVIRONMENT"). A subshell: dpkg sets these anew for each of its own.
for item in "$@"; do
    script=/var/lib/dpkg/info/${item#*/}.preinst
    [ -e "$script" ] || continue
    (
        export DPKG_MAINTSCRIPT_PACKAGE="${item%%/*}" DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 DPKG_MAINTSCRIPT_NAME=preinst
        export DPKG_MAINTSCRIPT_ARCH="$arch" DPKG_RUNNING_VERSION="$version"
        "$script" install
    ) || {
        echo "the preinst of ${item%%/*} failed" >&2
        exit 1
    }
done

unset DPKG_ROOT DPKG_ADMINDIR
dpkg --configure --force-depends --force-unsafe-io --force-confold --force-confdef -a
[ -z "$(dpkg --audit)" ] || {
    dpkg --audit >&2
    exit 1
}
