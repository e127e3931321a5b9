#!/bin/sh
# title: Configure containerd
# why: one cgroup driver (systemd) for kubelet and containers, the pause image that this kubelet names, drop-ins for registries
# families: debian redhat
# phase: build
# inputs: IB_PAUSE_IMAGE
# uses: files/containerd/config-v2.toml files/containerd/config-v3.toml
. "${IB_PROVISION:?}/lib.sh"

case $(containerd --version | awk '{ print $3 }') in
    1.* | v1.*) format=2 ;;
    *) format=3 ;;
esac
mkdir -p /etc/containerd/conf.d /etc/containerd/certs.d
pause=$(image_name "${IB_PAUSE_IMAGE:?}")
config=$(render "containerd/config-v$format.toml" "PAUSE_IMAGE=$pause" "SELINUX=$(selinux)") # a pipe would hide its failure
printf '%s\n' "$config" | put /etc/containerd/config.toml
containerd --config /etc/containerd/config.toml config dump > /dev/null || die "containerd does not accept its configuration"
