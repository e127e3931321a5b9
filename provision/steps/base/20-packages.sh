#!/bin/sh
# title: Install the operating system's part of a node
# why: kernel, init, network, time, audit and the tools that kubelet and kube-proxy call (conntrack, socat, ethtool)
# families: debian redhat
# phase: build
# inputs: IB_BASE_PACKAGES
. "${IB_PROVISION:?}/lib.sh"

# shellcheck disable=SC2086 # a list of names
pkg_install ${IB_BASE_PACKAGES:?}
for program in python3 openssl ip conntrack socat ethtool iptables ebtables; do want_program "$program"; done
