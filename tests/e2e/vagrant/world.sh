#!/bin/sh
# Runs a command with a libvirt of its own, in namespaces of its own: when it ends, nothing is left on the host.
# usage: world.sh COMMAND [ARGUMENT...]        (root; libvirtd, virtlogd, dnsmasq, qemu)
set -eu
if [ "${WORLD_INSIDE:-}" != yes ]; then
    WORLD_INSIDE=yes
    export WORLD_INSIDE
    exec unshare --mount --net --pid --ipc --fork --kill-child --mount-proc "$0" "$@"
fi

mount --make-rprivate /
mount -t sysfs sysfs /sys # libvirt looks for bridges in it: those of this network namespace
mkdir -p /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup 2> /dev/null || true
mount -t tmpfs tmpfs /run
[ -L /var/run ] || mount --bind /run /var/run
for folder in /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p "$folder"
    mount -t tmpfs tmpfs "$folder"
done
# A copy: the networks that libvirt defines must not stay on the host. The guests may run as root here.
cp -a /etc/libvirt /run/etc-libvirt
mount --bind /run/etc-libvirt /etc/libvirt
printf 'user = "root"\ngroup = "root"\ndynamic_ownership = 0\nsecurity_driver = "none"\ncgroup_controllers = []\n' > /etc/libvirt/qemu.conf
ip link set lo up
mkdir -p /run/libvirt /var/lib/libvirt/images /var/lib/libvirt/dnsmasq /var/lib/libvirt/qemu
virtlogd > "${WORLD_LOG:?}/virtlogd.log" 2>&1 &
libvirtd > "${WORLD_LOG:?}/libvirtd.log" 2>&1 &
waited=0
until virsh --connect qemu:///system list > /dev/null 2>&1; do
    waited=$((waited + 1))
    [ "$waited" -lt 100 ] || { tail -20 "$WORLD_LOG"/*.log >&2; exit 1; }
    sleep 0.3
done
"$@"
