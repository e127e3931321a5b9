#!/bin/sh
# title: Bring the source image up to date
# why: it is as old as its release; kernel modules are installed for the newest kernel only, so that one has to run
# families: debian redhat
# phase: build
# when: vm_build
. "${IB_PROVISION:?}/lib.sh"

pkg_upgrade
