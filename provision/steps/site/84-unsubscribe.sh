#!/bin/sh
# title: Unregister from the subscription
# why: an image must not carry one machine's identity and entitlement, nor use one up after the build
# families: redhat
# phase: build
# when: subscription
. "${IB_PROVISION:?}/lib.sh"

if command -v subscription-manager > /dev/null; then
    ! subscription-manager identity > /dev/null 2>&1 || subscription-manager unregister
    subscription-manager clean
fi
rm -rf /var/lib/rhsm/* /etc/pki/consumer/* /etc/pki/entitlement/* /var/log/rhsm/*
