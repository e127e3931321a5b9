#!/bin/sh
# title: Keep time with chrony
# why: certificates are checked against the clock; nothing at boot waits for the first synchronisation
# families: debian redhat
# phase: build
# uses: services/time
. "${IB_PROVISION:?}/lib.sh"

service_install time
service_mask chrony-wait.service systemd-time-wait-sync.service
ln -sfn /usr/share/zoneinfo/Etc/UTC /etc/localtime
