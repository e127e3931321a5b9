#!/bin/sh
# title: Ask for a reboot when a newer kernel was installed than the one that runs
# why: what follows is installed, and the image is tried, with the kernel that its nodes boot
# families: debian redhat
# phase: build
# when: vm_build
. "${IB_PROVISION:?}/lib.sh"

# The caller reboots between layers when the file is there; /run is empty afterwards.
newest=$(kernel_newest)
running=$(uname -r)
if [ "$newest" != "$running" ]; then
    mkdir -p /run/imagebuilder
    printf '%s\n' "$newest" | put /run/imagebuilder/reboot-needed
fi
