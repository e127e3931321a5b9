#!/bin/sh
# title: Remove what must not be the same on two nodes, or is of no use on any
# why: identities, keys, histories, logs and caches of the build leak, collide or only cost space
# families: debian
# phase: build
. "${IB_PROVISION:?}/lib.sh"

pkg_clean
: > /etc/machine-id # present and empty: systemd makes a new one at first boot
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /etc/ssh/ssh_host_*
rm -rf /root/.ssh /root/.bash_history /root/.cache /home/*/.bash_history
# A box must keep the one key that is no secret: Vagrant replaces it at the first up.
for keys in /home/*/.ssh/authorized_keys; do
    [ ! -e "$keys" ] || grep -q ' vagrant insecure public key$' "$keys" || rm -f "$keys"
done
[ ! -d /var/lib/cloud ] || rm -rf /var/lib/cloud/*
rm -f /var/lib/dhcp/*.leases /var/lib/systemd/network/* /run/systemd/netif/leases/* 2> /dev/null || true
find /var/log -type f \( -name '*.gz' -o -name '*.[0-9]' -o -name '*.old' \) -delete
find /var/log -type f -exec truncate -s 0 {} +
rm -rf /var/log/journal/*
rm -rf /tmp/* /tmp/.[!.]* /var/tmp/* /var/tmp/.[!.]*
rm -f /etc/apt/apt.conf.d/99mmdebstrap /etc/dpkg/dpkg.cfg.d/99mmdebstrap
# /etc and /var are of this build: says to systemd that no first boot has to rebuild their caches (ldconfig and others).
touch -r /usr /etc/.updated /var/.updated
