#!/bin/sh
# title: Run the scripts of --script
# why: what no package and no file can say
# families: debian redhat
# phase: build
# inputs: IB_SITE_SCRIPTS
. "${IB_PROVISION:?}/lib.sh"

for script in "${IB_SITE_SCRIPTS:?}"/*; do
    [ -e "$script" ] || continue
    say "running ${script##*/}"
    "$script"
done
