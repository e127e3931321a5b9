#!/bin/sh
# title: Say which drivers the initramfs of a later kernel has
# why: the image's own was made by the engine, small, and is not made again by what updates a node
# families: debian redhat
# phase: build
# when: small_initramfs
# inputs: IB_INITRAMFS_MODULES
. "${IB_PROVISION:?}/lib.sh"

# Here, not in the base layer, which targets with other drivers share.
# shellcheck disable=SC2086 # a list of names
initramfs_setup ${IB_INITRAMFS_MODULES:?}
