#!/bin/sh
# title: Leave out AppArmor profiles that confine nothing
# why: Debian ships a hundred for desktop programs, all unconfined; parsing them delays every boot by seconds
# families: debian
# phase: build
. "${IB_PROVISION:?}/lib.sh"

mkdir -p /etc/apparmor.d/disable
for profile in /etc/apparmor.d/*; do
    [ -f "$profile" ] || continue
    if grep -q 'flags=(unconfined)' "$profile"; then
        ln -sfn "../${profile##*/}" "/etc/apparmor.d/disable/${profile##*/}"
    fi
done
