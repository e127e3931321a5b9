#!/bin/sh
# title: Install kubelet, kubeadm and kubectl
# why: one version of all three, from packages or from programs built or fetched before
# families: debian redhat
# phase: build
# inputs: IB_KUBERNETES_VERSION IB_KUBERNETES_PAYLOAD IB_KUBERNETES_PACKAGES
. "${IB_PROVISION:?}/lib.sh"

if [ -n "${IB_KUBERNETES_PAYLOAD:-}" ]; then
    for program in kubelet kubeadm kubectl; do install_program "$IB_KUBERNETES_PAYLOAD/$program"; done
else
    set --
    for name in ${IB_KUBERNETES_PACKAGES:?}; do set -- "$@" "$(pkg_version "$name" "${IB_KUBERNETES_VERSION:?}")"; done
    pkg_install "$@"
fi
found=$(kubelet --version)
[ "$found" = "Kubernetes v${IB_KUBERNETES_VERSION:?}" ] || die "kubelet says \"$found\", not v$IB_KUBERNETES_VERSION"
mkdir -p /etc/kubernetes/manifests /var/lib/kubelet
chmod 0700 /var/lib/kubelet
relabel /etc/kubernetes /var/lib/kubelet
