#!/bin/sh
# title: Load overlay and br_netfilter at boot
# why: containerd's snapshots need overlay; bridged pod traffic is only filtered with br_netfilter
# families: debian redhat
# phase: build
. "${IB_PROVISION:?}/lib.sh"

printf 'overlay\nbr_netfilter\n' | put /etc/modules-load.d/imagebuilder.conf
kernel=$(kernel_newest)
# The last two are kube-proxy's and network add-ons'. EL10 has all but overlay in kernel-modules-extra (kops#18724).
for module in overlay br_netfilter nft_compat ip_set; do
    modprobe --set-version "$kernel" --show-depends "$module" > /dev/null || die "kernel $kernel has no module $module"
done
