#!/bin/sh
# Runs the end-to-end tests: scripts/tests.sh [ARGUMENTS OF pytest]. Without arguments in three parts side by side, since
# most tests wait more than they compute, those of images for the disk: the output of the others follows that of the first.
set -eu
cd "$(dirname "$0")/.."
pytest="build/venv/bin/python -m pytest -q"
if [ $# -gt 0 ]; then
    # shellcheck disable=SC2086 # words are meant to be split
    exec $pytest "$@" tests
fi
logs=$(mktemp -d)
running=
# The shell runs the first trap at its end by a signal only when it is told to end.
trap '[ -z "$running" ] || kill $running 2>/dev/null || true; rm -rf "$logs"' EXIT
trap 'exit 130' HUP INT TERM
first='' others='' images=''
for d in tests/*/; do
    case $d in
    tests/apps/ | tests/harness/ | */__pycache__/) ;;
    tests/apache/ | tests/conformance/ | tests/express/ | tests/nginx/ | tests/worker/) first="$first $d" ;;
    tests/docker/) images=$d ;;
    *) others="$others $d" ;;
    esac
done
# shellcheck disable=SC2086
$pytest $others >"$logs/others" 2>&1 &
running=$!
# Where there are no images yet, the first test makes them.
$pytest --override-ini=timeout=1200 --override-ini=faulthandler_timeout=1150 "$images" >"$logs/images" 2>&1 &
running="$running $!"
status=0
# shellcheck disable=SC2086
$pytest $first || status=$?
for part in $running; do
    wait "$part" || status=$?
done
running=
cat "$logs/others" "$logs/images"
exit "$status"
