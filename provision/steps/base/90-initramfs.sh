#!/bin/sh
# title: Make the initramfs with the drivers of the target
# why: the stock one carries every driver and takes longer to make, to load and to unpack
# families: debian redhat
# phase: build
# inputs: IB_INITRAMFS IB_INITRAMFS_MODULES
. "${IB_PROVISION:?}/lib.sh"

# shellcheck disable=SC2086 # a list of names
initramfs_setup ${IB_INITRAMFS_MODULES:?}
# The direct engine adds one of its own to the disk: what is set up is for the kernels that a node may get later.
[ "${IB_INITRAMFS:-stock}" = small ] || initramfs_build
