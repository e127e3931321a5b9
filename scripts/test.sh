#!/bin/sh
# Runs every test, in three parts side by side: one that boots nodes, one at a time, and two which make room for it. A node
# that starves has services that time out, and works more: what it does by the clock it does all the longer. On a slow host
# two nodes beside each other took twice the processor. What the first two say comes at the end.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
parts=""
# shellcheck disable=SC2317 # the trap calls it
end() {
    # shellcheck disable=SC2086 # a list of numbers
    [ -z "$parts" ] || kill -INT $parts 2> /dev/null || true
    wait
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 130' INT TERM

# part NAME NICENESS ARGUMENT...: starts pytest with the arguments; what it says is kept. A shell has what it starts with "&"
# ignore Ctrl-C: env undoes that, else end() waits for all tests.
part() {
    file=$folder/$1 niceness=$2
    shift 2
    env --default-signal=INT nice -n "$niceness" .venv/bin/pytest --durations 10 "$@" > "$file" 2>&1 &
    parts="$parts $!"
}

# These start no node: a guest of theirs has no services. The others are here so that the parts end together.
small="tests/e2e/test_initramfs_guests.py tests/e2e/test_verify_offline.py
    tests/integration/test_faults_*.py tests/integration/test_packer_validate.py"
ignored=""
for file in $small; do
    ignored="$ignored --ignore $file"
done
# shellcheck disable=SC2086 # lists of words
part nodes 0 tests/e2e $ignored
# shellcheck disable=SC2086
part units 5 tests/unit $small
status=0
# shellcheck disable=SC2086
nice -n 5 .venv/bin/pytest --durations 10 tests/integration $ignored || status=$?
echo "waiting for the other tests"
for number in $parts; do
    wait "$number" || status=$?
done
parts=""
cat "$folder/units" "$folder/nodes"
exit "$status"
