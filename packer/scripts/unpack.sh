#!/bin/sh
# Runs after the upload: unpacks the recipe, and what --overlay names.
set -eu
cd /var/lib/imagebuilder-build
chown -R root:root .
chmod 0711 .
for archive in provision.tar overlays/*.tar; do
    [ -f "$archive" ] || continue
    case $archive in
        provision.tar) folder=. ;;
        *) folder=${archive%.tar} && mkdir "$folder" ;;
    esac
    tar -C "$folder" -xpf "$archive"
    rm "$archive"
done
