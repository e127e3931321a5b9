#!/bin/sh
# title: Set the kernel parameters of a node
# why: forwarding and bridge filtering for pods, kubelet's protectKernelDefaults, enough inotify watches, node ports kept free
# families: debian redhat
# phase: build
# uses: files/sysctl.conf
. "${IB_PROVISION:?}/lib.sh"

put /etc/sysctl.d/90-imagebuilder.conf < "$IB_PROVISION/files/sysctl.conf"
