#!/bin/sh
# title: Take an address by DHCP on every Ethernet card
# why: an image without a datasource must still be reachable; pods' own interfaces are left alone
# families: debian redhat
# phase: build
# uses: services/network
. "${IB_PROVISION:?}/lib.sh"

service_install network
network_defaults
rm -f /etc/hostname # a node's name comes from DHCP, the data package or its operator
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' | put /etc/hosts
