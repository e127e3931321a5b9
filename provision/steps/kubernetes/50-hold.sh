#!/bin/sh
# title: Hold kernel, runtime and Kubernetes packages
# why: an upgrade of one of them on a live node restarts pods, or breaks the pair that was tested
# families: debian redhat
# phase: build
# inputs: IB_HOLD_PACKAGES
. "${IB_PROVISION:?}/lib.sh"

# shellcheck disable=SC2086 # a list of names
pkg_hold ${IB_HOLD_PACKAGES:?}
