#!/bin/sh
# title: Start containerd early
# why: kubelet waits for it; the packaged unit waits for the network and for dbus, which containerd does not need
# families: debian redhat
# phase: build
# uses: services/containerd
. "${IB_PROVISION:?}/lib.sh"

service_install containerd
