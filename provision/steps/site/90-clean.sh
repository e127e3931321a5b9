#!/bin/sh
# title: Remove what must not be the same on two nodes, or is of no use on any
# why: identities, keys, histories, logs and caches of the build leak, collide or only cost space
# families: debian redhat
# phase: build
# uses: files/vagrant.pub
. "${IB_PROVISION:?}/lib.sh"

pkg_clean
: > /etc/machine-id # present and empty: systemd makes a new one at first boot
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /var/lib/containerd/io.containerd.grpc.v1.introspection/uuid # of the containerd that preloaded images
rm -f /etc/ssh/ssh_host_*
rm -rf /root/.ssh /root/.bash_history /root/.cache /home/*/.bash_history
for keys in /home/*/.ssh/authorized_keys; do
    # The one that all of Vagrant's boxes have is no secret, and is replaced at the first up.
    cmp -s "$keys" "$IB_PROVISION/files/vagrant.pub" || rm -f "$keys"
done
rm -f /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid- # as before the last change
rm -f /etc/.resolv.conf.systemd-resolved.bak # the name server of the build
[ ! -d /var/lib/cloud ] || rm -rf /var/lib/cloud/*
rm -f /var/lib/dhcp/*.leases /var/lib/systemd/network/* /run/systemd/netif/leases/* 2> /dev/null || true
find /var/log -type f \( -name '*.gz' -o -name '*.[0-9]' -o -name '*.old' \) -delete
find /var/log -type f -exec truncate -s 0 {} +
rm -rf /var/log/journal/*
rm -rf /tmp/* /tmp/.[!.]* /var/tmp/* /var/tmp/.[!.]*
# /etc and /var are of this build: says to systemd that no first boot has to rebuild their caches (ldconfig and others).
touch -r /usr /etc/.updated /var/.updated
