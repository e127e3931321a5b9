#!/bin/sh
# title: Wait until the machine has settled
# why: cloud-init's first boot and the timers that run already hold the package lock, or change what is being built
# families: debian redhat
# phase: build
# when: vm_build
. "${IB_PROVISION:?}/lib.sh"

# shellcheck disable=SC2046 # a list of names
service_stop $(default_timers)
if command -v cloud-init > /dev/null; then
    status=0
    timeout 900 cloud-init status --wait > /dev/null || status=$?
    # 1 and 2: errors of its own. The machine is reached, or this would not run; a later step says what it misses.
    [ "$status" -le 2 ] || die "cloud-init was not done after 15 minutes"
fi
pkg_wait
