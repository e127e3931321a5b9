#!/bin/sh
# Runs every test, in four parts side by side: two that boot nodes, each one at a time, and two which make room for them: a
# node that starves has services that time out. What the first three say comes at the end.
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

builds="tests/e2e/test_packer_build.py tests/e2e/test_images.py tests/e2e/test_vagrant.py tests/e2e/test_verify.py"
# These start no node: a guest of theirs has no services. The others are here so that both parts end together.
small="tests/e2e/test_initramfs_guests.py tests/e2e/test_verify_offline.py
    tests/integration/test_faults_*.py tests/integration/test_packer_validate.py"
ignored=""
for file in $builds $small; do
    ignored="$ignored --ignore $file"
done
# shellcheck disable=SC2086 # lists of words
part builds 0 $builds
# shellcheck disable=SC2086
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
cat "$folder/units" "$folder/builds" "$folder/nodes"
exit "$status"
