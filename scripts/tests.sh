#!/bin/sh
# Runs the end-to-end tests: scripts/tests.sh [ARGUMENTS OF pytest]. Without arguments in two halves side by side, since
# most tests wait more than they compute: the second half's output follows that of the first.
set -eu
cd "$(dirname "$0")/.."
pytest="build/venv/bin/python -m pytest -q"
if [ $# -gt 0 ]; then
    # shellcheck disable=SC2086 # words are meant to be split
    exec $pytest "$@" tests
fi
log=$(mktemp)
second=
# The shell runs the first trap at its end by a signal only when it is told to end.
trap '[ -z "$second" ] || kill "$second" 2>/dev/null || true; rm -f "$log"' EXIT
trap 'exit 130' HUP INT TERM
first='' others=''
for d in tests/*/; do
    case $d in
    tests/apps/ | tests/harness/ | */__pycache__/) ;;
    tests/apache/ | tests/conformance/ | tests/express/ | tests/nginx/ | tests/worker/) first="$first $d" ;;
    *) others="$others $d" ;;
    esac
done
# shellcheck disable=SC2086
$pytest $others >"$log" 2>&1 &
second=$!
status=0
# shellcheck disable=SC2086
$pytest $first || status=$?
wait "$second" || status=$?
cat "$log"
exit "$status"
