#!/bin/sh
# title: Register with the distribution's subscription while the image is built
# why: RHEL's packages are given to registered machines only; cloud images that have them otherwise need no key
# families: redhat
# phase: build
# when: subscription
# inputs: IB_RHSM_ORGANIZATION IB_RHSM_ACTIVATION_KEY
. "${IB_PROVISION:?}/lib.sh"

if [ -z "${IB_RHSM_ACTIVATION_KEY:-}" ]; then
    say "no activation key was given: the repositories of the source image serve"
elif ! subscription-manager identity > /dev/null 2>&1; then
    # Inside a machine of our own that is thrown away: nobody else reads its process list.
    subscription-manager register --org "${IB_RHSM_ORGANIZATION:?}" --activationkey "$IB_RHSM_ACTIVATION_KEY"
fi
