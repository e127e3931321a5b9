#!/bin/sh
# title: Report on the console when containerd, kubelet and pods are ready
# why: a machine without a login still tells its state, and boot times are measured where they happen
# families: debian redhat
# phase: build
# uses: services/node-report
. "${IB_PROVISION:?}/lib.sh"

service_install node-report
