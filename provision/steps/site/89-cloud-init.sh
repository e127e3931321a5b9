#!/bin/sh
# title: Switch off a cloud-init that the source image brought
# why: the target does not want it; at boot it would look for a cloud and make its default user anew
# families: debian redhat
# phase: build
# when: no_cloud_init vm_build
. "${IB_PROVISION:?}/lib.sh"

[ ! -d /etc/cloud ] || put /etc/cloud/cloud-init.disabled < /dev/null
