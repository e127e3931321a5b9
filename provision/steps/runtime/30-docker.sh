#!/bin/sh
# title: Set docker up beside kubelet's containerd
# why: people build and run containers on nodes with docker; it starts after kubelet and shares its containerd
# families: debian redhat
# phase: build
# uses: files/docker-daemon.json services/docker
. "${IB_PROVISION:?}/lib.sh"

put /etc/docker/daemon.json < "$IB_PROVISION/files/docker-daemon.json"
service_install docker
