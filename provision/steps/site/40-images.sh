#!/bin/sh
# title: Preload the container images of --image
# why: pods of the site start without a registry, and without unpacking at first boot
# families: debian
# phase: build
# inputs: IB_SITE_IMAGES
# uses: files/containerd/preload.toml
. "${IB_PROVISION:?}/lib.sh"

set --
for archive in "${IB_SITE_IMAGES:?}"/*.tar; do [ ! -e "$archive" ] || set -- "$@" "$archive"; done
images_preload "" "$@"
