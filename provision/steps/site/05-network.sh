#!/bin/sh
# title: Forget the network of the machine that the image is built in
# why: its addresses, uuids and leases are those of one machine; the image's own default takes any network
# families: debian redhat
# phase: build
# when: vm_build
. "${IB_PROVISION:?}/lib.sh"

network_forget
