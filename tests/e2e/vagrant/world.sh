#!/bin/sh
# Runs a command with a libvirt of its own, in namespaces of its own: when it ends, nothing is left on the host, and
# nothing of the host's libvirt is used. WORLD names a folder for logs and disks. Root; libvirtd, virtlogd, dnsmasq.
# usage: WORLD=DIR world.sh COMMAND [ARGUMENT...]
set -eu
: "${WORLD:?}"
if [ "${WORLD_INSIDE:-}" != yes ]; then
    WORLD_INSIDE=yes
    export WORLD_INSIDE
    exec unshare --mount --net --pid --ipc --fork --kill-child --mount-proc "$0" "$@"
fi

mount --make-rprivate /
mount -t sysfs sysfs /sys # libvirt looks for bridges in it: those of this network
[ ! -d /sys/fs/cgroup ] || mount -t cgroup2 none /sys/fs/cgroup 2> /dev/null || :
mount -t tmpfs tmpfs /run
[ -L /var/run ] || mount --bind /run /var/run
for folder in lib cache log; do
    mkdir -p "/var/$folder/libvirt" "$WORLD/$folder"
    mount --bind "$WORLD/$folder" "/var/$folder/libvirt"
done
# A copy: the networks that vagrant-libvirt defines must not stay on the host.
cp -a /etc/libvirt /run/etc-libvirt
mount --bind /run/etc-libvirt /etc/libvirt
printf 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\n' > /etc/libvirt/qemu.conf
ip link set lo up
mkdir -p /run/libvirt /var/lib/libvirt/images /var/lib/libvirt/dnsmasq /var/lib/libvirt/qemu
virtlogd > "$WORLD/virtlogd.log" 2>&1 &
libvirtd > "$WORLD/libvirtd.log" 2>&1 &
waited=0
until virsh --connect qemu:///system list > /dev/null 2>&1; do
    waited=$((waited + 1))
    [ "$waited" -lt 200 ] || {
        tail -n 20 "$WORLD"/*.log >&2
        exit 1
    }
    sleep 0.3
done
"$@"
