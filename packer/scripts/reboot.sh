#!/bin/sh
# Reboots when a newer kernel than the running one is installed.
set -eu
newest=$(find /lib/modules -mindepth 2 -maxdepth 2 -name modules.dep | sed 's|/modules.dep$||; s|.*/||' | sort -V | tail -n 1)
if [ "$newest" = "$(uname -r)" ]; then
    echo "the newest kernel runs: $newest"
    exit 0
fi
echo "rebooting: $(uname -r) runs, $newest is installed"
systemctl reboot
sleep 300 # the connection ends before this does
