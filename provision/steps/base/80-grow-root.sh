#!/bin/sh
# title: Grow the root file system to the disk at boot
# why: the image is small, the disk that it is written to is not
# families: debian redhat
# phase: build
# uses: services/grow-root services/grow-part
. "${IB_PROVISION:?}/lib.sh"

grow_root_install
