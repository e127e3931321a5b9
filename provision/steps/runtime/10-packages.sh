#!/bin/sh
# title: Install docker, containerd and runc
# why: containerd runs kubelet's pods; docker, for people, shares it
# families: debian redhat
# phase: build
# inputs: IB_RUNTIME_PACKAGES
. "${IB_PROVISION:?}/lib.sh"

# shellcheck disable=SC2086 # a list of names
pkg_install ${IB_RUNTIME_PACKAGES:?}
for program in containerd runc docker dockerd; do want_program "$program"; done
