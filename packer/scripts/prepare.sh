#!/bin/sh
# Runs first: waits for the machine's own first boot, which holds the package lock, and makes room for the uploads.
set -eu
if command -v cloud-init > /dev/null; then
    cloud-init status --wait > /dev/null || cloud-init status --long || true # degraded is good enough to build on
fi
install -d -m 0700 -o "${SUDO_USER:-root}" /var/lib/imagebuilder-build
