#!/bin/sh
# title: Preload the pause image
# why: every pod starts with it; a node must not need a registry for its first pod, nor unpack at first boot
# families: debian redhat
# phase: build
# inputs: IB_PAUSE_ARCHIVE IB_PAUSE_IMAGE
# uses: files/containerd/images.sh files/containerd/preload.toml
. "${IB_PROVISION:?}/lib.sh"
# shellcheck source=/dev/null
. "$IB_PROVISION/files/containerd/images.sh"

if [ -n "${IB_PAUSE_ARCHIVE:-}" ]; then
    images_preload "$(image_name "${IB_PAUSE_IMAGE:?}")" "$IB_PAUSE_ARCHIVE"
else
    image_pull "${IB_PAUSE_IMAGE:?}"
fi
