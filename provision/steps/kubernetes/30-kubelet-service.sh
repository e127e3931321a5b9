#!/bin/sh
# title: Start kubelet early, once it has a configuration
# why: it waits for containerd only, not for docker, time or the network; without a configuration it stays off
# families: debian redhat
# phase: build
# inputs: IB_KUBELET_DEFAULTS
# uses: services/kubelet
. "${IB_PROVISION:?}/lib.sh"

[ -e "${IB_KUBELET_DEFAULTS:?}" ] || printf 'KUBELET_EXTRA_ARGS=\n' | put "$IB_KUBELET_DEFAULTS"
service_install kubelet
service_stop kubelet.service # the package may have started it, and it must not run before the node has its data
