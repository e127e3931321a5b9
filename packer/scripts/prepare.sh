#!/bin/sh
# Runs first: makes room for what is uploaded. Not on a tmpfs, since the machine may reboot.
set -eu
user=${SUDO_USER:-root}
install -d -m 0700 -o "$user" /var/lib/imagebuilder-build
# The recipe removes cloud-init's rule for this user; the shutdown command, which removes the user and this one, must
# still run as root. A user vagrant is the image's own, and so is its rule.
case $user in
    root | vagrant) ;;
    *) printf '%s ALL=(ALL) NOPASSWD:ALL\n' "$user" | install -m 0440 /dev/stdin "/etc/sudoers.d/$user" ;;
esac
