#!/bin/sh
# title: Install the public keys that data packages are trusted for
# why: a node takes its certificates and configuration only from a package that one of these keys signed
# families: debian redhat
# phase: build
# inputs: IB_SITE_TRUST
. "${IB_PROVISION:?}/lib.sh"

for key in "${IB_SITE_TRUST:?}"/*; do
    [ -e "$key" ] || continue
    ! grep -q PRIVATE "$key" || die "${key##*/} holds a private key: --trust wants the public one"
    said=$(openssl pkey -pubin -in "$key" -noout -text) || die "${key##*/} is not a public key in PEM"
    printf '%s\n' "$said" | grep -q 'prime256v1' || die "${key##*/} is not of the curve P-256"
    openssl pkey -pubin -in "$key" | put "/etc/imagebuilder/trust.d/${key##*/}"
done
