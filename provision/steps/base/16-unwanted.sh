#!/bin/sh
# title: Remove snapd
# why: it mounts, fetches and updates on its own, and costs seconds of every boot of an Ubuntu that nobody uses snaps on
# families: debian redhat
# phase: build
. "${IB_PROVISION:?}/lib.sh"

pkg_remove snapd
rm -rf /snap /var/snap /var/lib/snapd /var/cache/snapd ~root/snap
