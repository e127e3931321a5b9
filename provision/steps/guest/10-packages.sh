#!/bin/sh
# title: Install what the target's hypervisor or cloud wants in its guests
# why: guest agents and cloud-init belong to the target, not to the operating system
# families: debian redhat
# phase: build
# when: guest_packages
# inputs: IB_GUEST_PACKAGES
. "${IB_PROVISION:?}/lib.sh"

# shellcheck disable=SC2086 # a list of names
pkg_install ${IB_GUEST_PACKAGES:?}
