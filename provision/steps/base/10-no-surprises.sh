#!/bin/sh
# title: Stop timers that install or fetch on their own
# why: a package run in the background takes the package lock during the build and changes a node afterwards
# families: debian redhat
# phase: build
. "${IB_PROVISION:?}/lib.sh"

default_timers_off
