#!/bin/sh
# title: Remove the traces of installer, cloud-init and machine
# why: they belong to the machine that the image was built in; a node that finds them takes itself for that one
# families: debian redhat
# phase: build
# when: vm_build
# inputs: IB_SITE_OVERLAYS
. "${IB_PROVISION:?}/lib.sh"

service_stop docker.socket docker.service kubelet.service containerd.service
rm -rf /var/lib/docker # of the build; the engine's identity is in it

# Not --machine-id: that deletes the file where an empty one is wanted.
! command -v cloud-init > /dev/null || cloud-init clean --logs
rm -f /etc/cloud/cloud.cfg.d/99-installer.cfg /etc/cloud/cloud.cfg.d/*subiquity* /etc/cloud/cloud.cfg.d/*curtin* \
    /etc/cloud/ds-identify.cfg /etc/cloud/cloud-init.disabled /etc/sudoers.d/90-cloud-init-users \
    /etc/ssh/sshd_config.d/50-cloud-init.conf /etc/ssh/sshd_config.d/01-permitrootlogin.conf
rm -rf /var/log/installer /var/log/anaconda /root/*-ks.cfg

# Proxies and repositories of the build; the distribution's repositories stay, and what the site's overlays brought.
rm -f /etc/apt/apt.conf.d/90cloud-init-aptproxy /etc/apt/apt.conf.d/90curtin-aptproxy
pkg_repositories_forget

rm -f /etc/lvm/devices/* /etc/udev/rules.d/70-persistent*
rm -f /boot/*-0-rescue-* /boot/loader/entries/*-0-rescue.conf # named after the machine-id
rm -rf /var/lib/rhsm/* /var/lib/insights/* /etc/insights-client/machine-id /etc/docker/key.json
for resolver in "${IB_SITE_OVERLAYS:-/none}"/*/etc/resolv.conf; do
    [ -e "$resolver" ] || [ -L "$resolver" ] || resolver_default
done
