#!/bin/sh
# Configures packages that were unpacked without dpkg. Runs inside their root tree; see fastroot.py.
# usage: fastroot.sh ARCH RUNNING_VERSION PACKAGE[:ARCH]... (each after what it depends on)
set -eu
umask 022
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true
arch=$1
version=$2
shift 2
given=${0%/*}/preinst
control=/var/lib/dpkg/tmp.ci # where dpkg has a package's control files while it is unpacked

# A subshell with what dpkg says to a maintainer script (dpkg(1), "ENVIRONMENT"): dpkg sets these anew for its own.
for package in "$@"; do
    [ -e "$given/$package/preinst" ] || continue
    cp -R "$given/$package" "$control"
    (
        export DPKG_ROOT='' DPKG_ADMINDIR=/var/lib/dpkg DPKG_RUNNING_VERSION="$version"
        export DPKG_MAINTSCRIPT_PACKAGE="${package%:*}" DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1
        export DPKG_MAINTSCRIPT_NAME=preinst DPKG_MAINTSCRIPT_ARCH="$arch"
        "$control/preinst" install
    ) || {
        echo "the preinst of $package failed" >&2
        exit 1
    }
    rm -r "$control"
done

# What beside.sh hands over is done here, one after the other, while dpkg goes on.
beside=${0%/*}/beside
worker=""
if [ -d "$beside/real" ]; then
    mkfifo "$beside/queue"
    (
        failed=0
        while read -r job; do # to the end, or who hands over would wait for a reader
            xargs -d '\n' -a "$job" env || failed=1
        done < "$beside/queue"
        exit "$failed"
    ) &
    worker=$!
    exec 3> "$beside/queue"
fi
set -- --force-unsafe-io --force-confold --force-confdef --configure "$@"
dpkg "$@" 3>&-
exec 3>&-
[ -z "$worker" ] || wait "$worker" || {
    echo "what went on beside dpkg failed" >&2
    exit 1
}
for program in "${given%/*}"/later/*; do
    [ ! -e "$program" ] || "$program" --fresh
done
left=$(dpkg --audit)
[ -z "$left" ] || {
    echo "$left" >&2
    exit 1
}

# Logs, and what must not be the same on two nodes: mmdebstrap(1), "cleanup/reproducible".
rm -f /var/log/dpkg.log /var/log/alternatives.log /var/cache/ldconfig/aux-cache /var/lib/dbus/machine-id
if [ -e /etc/machine-id ]; then
    rm /etc/machine-id
    : > /etc/machine-id
fi
[ -e /etc/fstab ] || echo '# UNCONFIGURED FSTAB FOR BASE SYSTEM' > /etc/fstab
