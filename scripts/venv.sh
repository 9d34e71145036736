#!/bin/sh
# Makes the virtual environment of the tests, build/venv, when it is not there or its requirements have changed.
set -eu
cd "$(dirname "$0")/.."
venv=build/venv
python=/usr/bin/python3
[ -x "$python" ] || python=$(command -v python3)
stamp=$venv/requirements.txt
if cmp -s tests/requirements.txt "$stamp" && "$venv/bin/python" -c 'import pytest' 2>/dev/null; then
    exit 0
fi
rm -rf "$venv"
mkdir -p build
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install -q --disable-pip-version-check -r tests/requirements.txt
cp tests/requirements.txt "$stamp"
