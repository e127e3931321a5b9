#!/bin/sh
# title: Install crictl and point it at containerd
# why: it is how people look at a node's containers; without the file it warns and tries other sockets
# families: debian redhat
# phase: build
# inputs: IB_CRICTL_PAYLOAD IB_CRICTL_PACKAGES
# uses: files/crictl.yaml
. "${IB_PROVISION:?}/lib.sh"

if [ -n "${IB_CRICTL_PAYLOAD:-}" ]; then
    install_program "$IB_CRICTL_PAYLOAD/crictl"
else
    # shellcheck disable=SC2086 # a list of names
    pkg_install ${IB_CRICTL_PACKAGES:?}
fi
want_program crictl
put /etc/crictl.yaml < "$IB_PROVISION/files/crictl.yaml"
