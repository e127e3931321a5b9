#!/bin/sh
# title: Load overlay and br_netfilter at boot
# why: containerd's snapshots need overlay; bridged pod traffic is only filtered with br_netfilter
# families: debian
# phase: build
. "${IB_PROVISION:?}/lib.sh"

printf 'overlay\nbr_netfilter\n' | put /etc/modules-load.d/imagebuilder.conf
for kernel in /lib/modules/*; do
    for module in overlay br_netfilter; do
        modprobe --set-version "${kernel##*/}" --show-depends "$module" > /dev/null \
            || die "kernel ${kernel##*/} has no module $module"
    done
done
