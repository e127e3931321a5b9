#!/bin/sh
# title: Preload the pause image
# why: every pod starts with it; a node must not need a registry for its first pod, nor unpack at first boot
# families: debian
# phase: build
# inputs: IB_PAUSE_ARCHIVE IB_PAUSE_IMAGE
# uses: files/containerd/preload.toml
. "${IB_PROVISION:?}/lib.sh"

images_preload "${IB_PAUSE_IMAGE:?}" "${IB_PAUSE_ARCHIVE:?}"
