#!/bin/sh
# title: Install the packages that were asked for with --package
# why: what one site needs on all its nodes
# families: debian redhat
# phase: build
# inputs: IB_SITE_PACKAGES
. "${IB_PROVISION:?}/lib.sh"

# shellcheck disable=SC2086 # a list of names
[ -z "${IB_SITE_PACKAGES:-}" ] || pkg_install $IB_SITE_PACKAGES
