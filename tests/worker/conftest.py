"""Workers for the tests of this directory, with each interpreter that is found."""

import subprocess
from pathlib import Path

import pytest
from worker.driver import ROUTES

from worker import driver

Worker = driver.Worker


def interpreters():
    """Debian's python3 and, below ~/.pyenv, one of each supported version; what is missing is reported."""
    found = {}
    candidates = [Path("/usr/bin/python3"), *sorted(Path.home().glob(".pyenv/versions/3.1*/bin/python"))]
    for path in candidates:
        if path.exists():
            out = subprocess.run(
                [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], stdout=subprocess.PIPE
            )
            found.setdefault(out.stdout.decode().strip(), path)
    return found


FOUND = interpreters()
WANTED = ["3.10", "3.11", "3.12", "3.13"]


@pytest.fixture(scope="module", params=WANTED)
def python(request):
    if request.param not in FOUND:
        pytest.skip(f"CPython {request.param} is not installed here")
    return FOUND[request.param]


@pytest.fixture(scope="module")
def shared_worker(python, tmp_path_factory):
    """One worker for the tests that leave it as it was."""
    with Worker(tmp_path_factory.mktemp("w"), python=python, preload=[(ROUTES, "application")], rows=16) as w:
        w.script = ROUTES
        w.wait_ready()
        yield w


@pytest.fixture
def worker(python, tmp_path):
    with Worker(tmp_path, python=python, preload=[(ROUTES, "application")]) as w:
        w.script = ROUTES
        w.wait_ready()
        yield w


@pytest.fixture
def newest(tmp_path):
    """For what does not depend on the version: a function that starts workers with one interpreter."""
    workers = []

    def start(**options):
        w = Worker(tmp_path, python=FOUND[max(FOUND, key=lambda v: int(v.split(".")[1]))], **options)
        workers.append(w)
        w.__enter__()
        return w

    yield start
    for w in workers:
        w.__exit__(None, None, None)
