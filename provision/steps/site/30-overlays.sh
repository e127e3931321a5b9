#!/bin/sh
# title: Copy the overlay folders of --overlay over the root
# why: configuration, manifests and files of one site, as they lie in a folder
# families: debian redhat
# phase: build
# inputs: IB_SITE_OVERLAYS
. "${IB_PROVISION:?}/lib.sh"

# Owners and group-write bits of the builder's checkout mean nothing on the node.
for overlay in "${IB_SITE_OVERLAYS:?}"/*/; do
    [ -d "$overlay" ] || continue
    tar -C "$overlay" --owner=0 --group=0 --mode=go-w -cf - . | tar -C / --no-overwrite-dir --keep-directory-symlink -xpf -
    (cd "$overlay" && find . -type f) | while read -r path; do relabel "/${path#./}"; done
done
