#!/bin/sh
# title: Have no swap
# why: kubelet refuses to start with swap unless told otherwise, and pods' memory limits assume none
# families: debian redhat
# phase: build
. "${IB_PROVISION:?}/lib.sh"

if [ -e /etc/fstab ] && grep -q '[[:space:]]swap[[:space:]]' /etc/fstab; then
    grep -v '[[:space:]]swap[[:space:]]' /etc/fstab | put /etc/fstab
fi
! machine_runs || swapoff -a
# Fedora: an empty file of this name turns swap on zram off.
[ ! -e /usr/lib/systemd/zram-generator.conf ] || : | put /etc/systemd/zram-generator.conf
rm -f /swapfile /swap.img
service_mask swap.target
