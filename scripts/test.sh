#!/bin/sh
# Runs every test in two halves that take equally long, side by side: most of those that boot guests, and the rest.
# What the former say comes at the end.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
guests=""
packer=tests/e2e/test_packer_build.py
# shellcheck disable=SC2317 # the trap calls it
end() {
    [ -z "$guests" ] || kill -INT "$guests" 2> /dev/null || true
    wait
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 130' INT TERM

.venv/bin/pytest tests/e2e --ignore "$packer" > "$folder/guests" 2>&1 &
guests=$!
status=0
.venv/bin/pytest "$packer" tests/unit tests/integration || status=$?
echo "waiting for the tests that boot guests"
wait "$guests" || status=$?
guests=""
cat "$folder/guests"
exit "$status"
