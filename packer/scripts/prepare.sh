#!/bin/sh
# Runs first: makes room for what is uploaded. Not on a tmpfs, since the machine may reboot.
set -eu
install -d -m 0700 -o "${SUDO_USER:-root}" /var/lib/imagebuilder-build
