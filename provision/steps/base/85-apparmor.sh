#!/bin/sh
# title: Leave out AppArmor profiles that enforce nothing
# why: Debian ships a hundred for desktop and build programs, unconfined or complaining; parsing them delays every boot
# families: debian
# phase: build
# uses: services/apparmor
. "${IB_PROVISION:?}/lib.sh"

mkdir -p /etc/apparmor.d/disable
for profile in /etc/apparmor.d/*; do
    [ -f "$profile" ] || continue
    if grep -m 1 -E '^(profile |/)' "$profile" | grep -qE 'flags=\([^)]*(unconfined|complain)'; then
        ln -sfn "../${profile##*/}" "/etc/apparmor.d/disable/${profile##*/}"
    fi
done

service_install apparmor
