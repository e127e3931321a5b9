#!/bin/sh
# title: Put the CNI plugins where containerd looks for them
# why: distributions keep them elsewhere; every network add-on expects /opt/cni/bin
# families: debian redhat
# phase: build
# inputs: IB_CNI_PAYLOAD IB_CNI_PACKAGES
. "${IB_PROVISION:?}/lib.sh"

mkdir -p /opt/cni/bin /etc/cni/net.d
if [ -n "${IB_CNI_PAYLOAD:-}" ]; then
    for plugin in "$IB_CNI_PAYLOAD"/*; do
        case $plugin in *.json) continue ;; esac
        target=/opt/cni/bin/${plugin##*/}
        cmp -s "$plugin" "$target" || install -m 0755 "$plugin" "$target"
    done
else
    # shellcheck disable=SC2086 # a list of names
    pkg_install ${IB_CNI_PACKAGES:?}
    # Debian's and Red Hat's folders; the package of the Kubernetes project has /opt/cni/bin itself.
    for plugin in /usr/lib/cni/* /usr/libexec/cni/*; do
        [ ! -f "$plugin" ] || ln -sfn "$plugin" "/opt/cni/bin/${plugin##*/}"
    done
fi
relabel /opt/cni
for plugin in loopback bridge host-local portmap; do
    [ -x "/opt/cni/bin/$plugin" ] || die "the CNI plugin $plugin was not installed by any source"
done
