#!/bin/sh
# title: Make SSH host keys at first boot, and allow keys only
# why: keys in an image would be shared by all its nodes; without any key sshd does not start
# families: debian redhat
# phase: build
# uses: services/ssh
. "${IB_PROVISION:?}/lib.sh"

service_install ssh
locale_default
