#!/bin/sh
# title: Preload the container images of --image
# why: pods of the site start without a registry, and without unpacking at first boot
# families: debian redhat
# phase: build
# inputs: IB_SITE_IMAGES
# uses: files/containerd/images.sh files/containerd/preload.toml
. "${IB_PROVISION:?}/lib.sh"
# shellcheck source=/dev/null
. "$IB_PROVISION/files/containerd/images.sh"

set --
for archive in "${IB_SITE_IMAGES:?}"/*.tar; do [ ! -e "$archive" ] || set -- "$@" "$archive"; done
images_preload "" "$@"
