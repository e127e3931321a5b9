#!/bin/sh
# The last thing in a machine that an image is built in: removes the build user and the build's traces, powers off.
# usage: shutdown.sh [--stay] USER [FOLDER...]       as root; FOLDERs are removed too: those that were uploaded
# --stay leaves the machine on, for builders that stop it themselves.
set -eu

# One function, read as a whole before it runs: the file may lie in a folder that is removed.
main() {
    stay=""
    [ "${1:-}" != --stay ] || { stay=1 && shift; }
    user=${1:?the build user}
    shift
    # root is no user of the build, and the user of a Vagrant box belongs to the image.
    if [ "$user" != root ] && { [ "$user" != vagrant ] || [ ! -e /etc/sudoers.d/vagrant ]; }; then
        home=$(getent passwd "$user" | cut -d: -f6)
        rm -f "/etc/sudoers.d/$user" /etc/sudoers.d/90-cloud-init-users
        # --force: it is logged in, this very command runs in its session.
        status=0
        userdel --force --remove "$user" 2> /dev/null || status=$?
        if id -u "$user" > /dev/null 2>&1; then
            echo "the build user $user was not removed (userdel: exit code $status)" >&2
            exit 1
        fi
        case $home in /home/?*) rm -rf "$home" ;; esac
        # userdel's copies of before still have the user and its password.
        rm -f /etc/passwd- /etc/shadow- /etc/group- /etc/gshadow- /etc/subuid- /etc/subgid-
    fi
    [ $# -eq 0 ] || rm -rf "$@"
    rm -rf /root/.ssh /root/.bash_history /tmp/* /var/tmp/*
    # Azure's agent must take the copy for a new machine; what else of the build is its own, it removes.
    ! command -v waagent > /dev/null || waagent -force -deprovision
    # These two write once more when the machine goes off. auditd refuses to be stopped by systemctl.
    systemctl stop systemd-random-seed.service
    ! pkill -x auditd || sleep 2
    rm -f /var/lib/systemd/random-seed
    # What sudo and sshd logged since the clean-up.
    journalctl --relinquish-var 2> /dev/null || true
    rm -rf /var/log/journal/*
    find /var/log -type f -exec truncate -s 0 {} +
    fstrim --all 2> /dev/null || true
    sync
    [ -n "$stay" ] || systemctl poweroff
}

main "$@"
exit
