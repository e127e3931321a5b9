#!/bin/sh
# usage: remove-build-user.sh USER [poweroff]
# The last thing that is done: removes the user that Packer logged in as, and every trace of the build.
# Stops at the first failure: an image that still has its build user must not come into being.
set -eu
user=${1:?} ending=${2:-}
cd /
if command -v waagent > /dev/null; then waagent -force -deprovision > /dev/null; fi
if [ "$user" = root ]; then
    rm -rf /root/.ssh
    usermod -p '*' root
else
    rm -f /etc/sudoers.d/90-cloud-init-users
    for file in /etc/sudoers.d/*; do
        if [ -f "$file" ] && grep -q "^${user}[[:space:]]" "$file"; then rm -f "$file"; fi
    done
    home=$(getent passwd "$user" | cut -d: -f6)
    userdel -f "$user"
    if [ -n "$home" ] && [ "$home" != / ]; then rm -rf "$home"; fi
    if getent passwd "$user" > /dev/null; then
        echo "error: the build user $user is still there" >&2
        exit 1
    fi
fi
rm -rf /var/lib/cloud/* /tmp/script_*.sh /var/lib/imagebuilder-build
rm -f /etc/ssh/ssh_host_*
: > /etc/machine-id
find /var/log -type f -exec truncate -s 0 {} +
rm -rf /var/log/journal/*
sync
if [ "$ending" = poweroff ]; then systemctl poweroff; fi
