#!/bin/sh
# Runs every test, in two parts side by side: those that boot guests, one after another, and all others, which make room
# for them: a guest that starves has services that time out. What the former say comes at the end.
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
nice -n 5 .venv/bin/pytest tests/unit tests/integration || status=$?
echo "waiting for the tests that boot guests"
wait "$guests" || status=$?
guests=""
cat "$folder/guests"
exit "$status"
