#!/bin/sh
# Runs steps in order, each in a shell of its own, and says which one it is at: the caller reads the @@ lines.
# usage: run-steps.sh LAYER/NN-NAME.sh...
set -eu
for step in "$@"; do
    printf '@@step %s\n' "${step%.sh}"
    /bin/sh "${IB_PROVISION:?}/steps/$step"
done
printf '@@steps-done\n'
