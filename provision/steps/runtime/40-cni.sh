#!/bin/sh
# title: Put the CNI plugins where containerd looks for them
# why: distributions keep them elsewhere; every network add-on expects /opt/cni/bin
# families: debian
# phase: build
# inputs: IB_CNI_PAYLOAD IB_CNI_PACKAGES
. "${IB_PROVISION:?}/lib.sh"

mkdir -p /opt/cni/bin /etc/cni/net.d
if [ -n "${IB_CNI_PAYLOAD:-}" ]; then
    from=$IB_CNI_PAYLOAD
else
    # shellcheck disable=SC2086 # a list of names
    pkg_install ${IB_CNI_PACKAGES:?}
    from=/usr/lib/cni
fi
for plugin in "$from"/*; do
    case $plugin in *.json) continue ;; esac
    target=/opt/cni/bin/${plugin##*/}
    if [ -n "${IB_CNI_PAYLOAD:-}" ]; then
        cmp -s "$plugin" "$target" || install -m 0755 "$plugin" "$target"
    else
        ln -sfn "$plugin" "$target"
    fi
done
for plugin in loopback bridge host-local portmap; do
    [ -x "/opt/cni/bin/$plugin" ] || die "the CNI plugin $plugin was not installed by any source"
done
