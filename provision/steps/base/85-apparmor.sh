#!/bin/sh
# title: Leave out AppArmor profiles that enforce nothing
# why: Debian ships a hundred for desktop and build programs, unconfined or complaining; parsing them delays every boot
# families: debian
# phase: build
# uses: services/apparmor
. "${IB_PROVISION:?}/lib.sh"

# Where unprivileged namespaces are restricted (Ubuntu), the unconfined profiles are what allows programs to have them.
restricted=""
setting='^kernel.apparmor_restrict_unprivileged_userns *= *1'
! grep -qs "$setting" /usr/lib/sysctl.d/*.conf /etc/sysctl.d/*.conf || restricted=1
mkdir -p /etc/apparmor.d/disable
for profile in /etc/apparmor.d/*; do
    [ -f "$profile" ] || continue
    [ -z "$restricted" ] || ! grep -qE '^[[:space:]]*userns,' "$profile" || continue
    if grep -m 1 -E '^(profile |/)' "$profile" | grep -qE 'flags=\([^)]*(unconfined|complain)'; then
        ln -sfn "../${profile##*/}" "/etc/apparmor.d/disable/${profile##*/}"
    fi
done

service_install apparmor
