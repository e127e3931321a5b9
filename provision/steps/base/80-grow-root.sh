#!/bin/sh
# title: Grow the root file system to the disk at boot
# why: the image is small, the disk that it is written to is not
# families: debian
# phase: build
# uses: services/grow-root
. "${IB_PROVISION:?}/lib.sh"

service_install grow-root
