#!/bin/sh
# Runs every test: beside those that boot guests, one after another, all others. What the former say comes at the end.
set -eu
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
guests=""
# shellcheck disable=SC2317 # the trap calls it
end() {
    [ -z "$guests" ] || kill -INT "$guests" 2> /dev/null || true
    wait
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 130' INT TERM

.venv/bin/pytest tests/e2e > "$folder/guests" 2>&1 &
guests=$!
status=0
.venv/bin/pytest --ignore=tests/e2e || status=$?
echo "waiting for the tests that boot guests"
wait "$guests" || status=$?
guests=""
cat "$folder/guests"
exit "$status"
