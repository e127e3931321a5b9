#!/bin/sh
# title: Have no firewall of the distribution
# why: ufw and firewalld drop pod traffic and flush kube-proxy's rules; network policies and the cloud's rules remain
# families: debian redhat
# phase: build
. "${IB_PROVISION:?}/lib.sh"

firewall_off
