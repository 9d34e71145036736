#!/bin/sh
# Measures the build in the given directory beside its peers: scripts/bench.sh target/release [ARGS OF bench.py]
# The peers from PyPI get a virtual environment of their own, build/bench.
set -eu
cd "$(dirname "$0")/.."
venv=build/bench
python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3)
peers="mod_wsgi==6.1.1 uWSGI==2.0.31 gunicorn==27.0.1 granian==2.8.7 bjoern==3.2.2 fastwsgi==0.0.9"
if [ "$(cat "$venv/peers" 2>/dev/null)" != "$peers" ]; then
    mkdir -p build
    "$python" -m venv "$venv"
    # shellcheck disable=SC2086 # words are meant to be split
    "$venv/bin/python" -m pip install -q --disable-pip-version-check $peers
    echo "$peers" >"$venv/peers"
fi
exec "$venv/bin/python" scripts/bench.py "$@"
