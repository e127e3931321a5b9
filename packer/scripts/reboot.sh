#!/bin/sh
# Reboots when the last step of the layer base asks for it: a newer kernel than the running one is installed.
set -eu
if [ -e /run/imagebuilder/reboot-needed ]; then
    echo "rebooting into the kernel $(cat /run/imagebuilder/reboot-needed)"
    systemctl reboot
    sleep 300 # the connection ends before this does
fi
