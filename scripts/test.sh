#!/bin/sh
# Runs every test, in three parts side by side: two that boot guests, each one guest at a time, and all others, which make
# room for them: a guest that starves has services that time out. What the first two say comes at the end.
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

builds="tests/e2e/test_packer_build.py tests/e2e/test_images.py tests/e2e/test_vagrant.py"
ignored=""
for file in $builds; do
    ignored="$ignored --ignore $file"
done
# shellcheck disable=SC2086 # lists of words
.venv/bin/pytest --durations 10 $builds > "$folder/builds" 2>&1 &
builds=$!
# shellcheck disable=SC2086
.venv/bin/pytest --durations 10 tests/e2e $ignored > "$folder/nodes" 2>&1 &
nodes=$!
parts="$builds $nodes"
status=0
nice -n 5 .venv/bin/pytest tests/unit tests/integration || status=$?
echo "waiting for the tests that boot guests"
wait "$builds" || status=$?
wait "$nodes" || status=$?
parts=""
cat "$folder/builds" "$folder/nodes"
exit "$status"
