#!/bin/sh
# title: Remove the kernels that are older than the one that runs
# why: each costs a hundred megabytes of the image and can be booted by mistake
# families: debian redhat
# phase: build
# when: vm_build
. "${IB_PROVISION:?}/lib.sh"

# Flavours (cloud, generic, gcp) are numbered apart: only the running kernel's own is compared.
# 6.12.57+deb13-cloud-amd64 is cloud-amd64, 6.8.0-45-generic is generic, 5.14.0-503.el9_5.x86_64 is x86_64.
flavour() { say "$1" | sed -E 's/^[0-9.]+([+][a-z0-9]+)?-([0-9.]+-)?//; s/^[0-9.]+[.](el|fc)[0-9_]+[.]//'; }

running=$(uname -r)
for kernel in $(kernels); do
    [ "$kernel" != "$running" ] || break
    [ "$(flavour "$kernel")" != "$(flavour "$running")" ] || kernel_remove "$kernel"
done
