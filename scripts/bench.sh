#!/bin/sh
# Measures the build in the given directory beside its peers: scripts/bench.sh target/release [ARGS OF bench.py]
# The peers from PyPI get a virtual environment of their own, build/bench.
set -eu
cd "$(dirname "$0")/.."
venv=build/bench
python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3)
if [ ! -x "$venv/bin/uwsgi" ] || [ ! -x "$venv/bin/gunicorn" ] || [ ! -x "$venv/bin/mod_wsgi-express" ]; then
    mkdir -p build
    "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check mod_wsgi==6.1.1 uWSGI==2.0.31 gunicorn==27.0.1
fi
exec "$venv/bin/python" scripts/bench.py "$@"
