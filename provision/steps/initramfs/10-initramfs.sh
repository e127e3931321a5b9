#!/bin/sh
# title: Make the initramfs with the drivers of the target
# why: the stock one carries every driver and takes longer to make, to load and to unpack
# families: debian redhat
# phase: build
# when: stock_initramfs
# inputs: IB_INITRAMFS_MODULES
. "${IB_PROVISION:?}/lib.sh"

# shellcheck disable=SC2086 # a list of names
initramfs_setup ${IB_INITRAMFS_MODULES:?}
initramfs_build
