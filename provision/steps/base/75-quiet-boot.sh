#!/bin/sh
# title: Leave out what a node does not need at boot
# why: each of these costs seconds before kubelet runs, and none does anything for a node
# families: debian redhat
# phase: build
# inputs: IB_MASKED_SERVICES IB_MASKED_GENERATORS
. "${IB_PROVISION:?}/lib.sh"

# shellcheck disable=SC2086 # a list of names
service_mask ${IB_MASKED_SERVICES:-}
# shellcheck disable=SC2086 # a list of names
service_mask_generators ${IB_MASKED_GENERATORS:-}
