"""F5: code and interpreters that break under a running site: what serves goes on, it is said once, and mended by itself."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Callable

import pytest

from harness import counted, procs, product
from harness.front import PROCESSES, THREADS, Hosted
from harness.wait import wait_until

from .conftest import Run

pytestmark = [pytest.mark.ours, pytest.mark.timeout(300)]
Make = Callable[..., Hosted]
TRACEBACK = r"MWR0433|Traceback|\]   File |Error: |\]     |\] +\^"


def test_f5_edit_that_cannot_load(run: Run, front: Make) -> None:
    """F5: a broken edit under load: the old code answers every request, one MWR0308, the next good edit is served."""
    f = front()
    good = f.script.read_text()
    f.server.expect_log(r"MWR0308: .*deliberate")
    f.server.allow_log(TRACEBACK)
    with f.load("edit") as load:
        for i in range(run.times(1, 3)):
            old = f.settled()
            load.more(100)
            f.server.write("faults.wsgi", f"raise ValueError('deliberate-{i}')\n", expand=False)
            f.server.log.wait(f"MWR0308.*deliberate-{i}")
            load.more(1000 if run.long else 300)
            assert f.workers() == old
            assert len(f.server.log.find(f"MWR0308.*deliberate-{i}")) == 1
            f.server.write("faults.wsgi", good, expand=False)
            wait_until(lambda o=old: len(w := f.workers()) == 2 and not set(w) & set(o), 20, "new workers")
    t = counted.tally(load.results, f.ids)
    print(t)
    t.clean()


def venv(f: Hosted, name: str) -> pathlib.Path:
    python = product.reachable_python((3, 11)) or pathlib.Path("/usr/bin/python3")
    made = product.make_venv(f.server.prefix / name, python)
    (next(made.glob("lib/python3*/site-packages")) / "which.py").write_text(f"NAME = {name!r}\n")
    return made


@pytest.fixture
def in_venv(front: Make) -> Hosted:
    """A server whose group has a virtual environment of its own."""
    f = front()
    made = venv(f, "venv")
    before = set(f.workers())
    f.change(f"processes={PROCESSES} threads={THREADS} python-home={made}")
    f.server.graceful()
    wait_until(lambda: len(w := f.workers()) == 2 and not set(w) & before, 20, "workers of the environment")
    return f


def test_f5_interpreter_removed(run: Run, in_venv: Hosted) -> None:
    """F5: the interpreter's file goes: running workers serve, reloads are refused, a dead worker is replaced as soon as
    it is back."""
    f = in_venv
    f.server.expect_log(r"MWR0305: .*cannot execute")
    f.server.allow_log(r"MWR0306|MWR0207|cannot execute")
    python = f.server.prefix / "venv" / "bin" / "python"
    with f.load("python") as load:
        load.more(100)
        away = python.with_name("away")
        python.rename(away)
        old = f.workers()
        os.utime(f.script, (1, 1))
        f.server.log.wait("MWR0305.*cannot execute")
        load.more(200)
        assert f.workers() == old, "the old ones serve"
        victim = procs.look(old[0])
        assert victim
        victim.kill()
        wait_until(lambda: f.workers() == old[1:], 10)
        load.more(300)
        lines = len(f.server.log.find("MWR0305"))
        away.rename(python)
        # the back-off is at most 30 s, and no more than 8 s after so few failures
        wait_until(lambda: len(w := f.workers()) == 2 and not set(w) & set(old), 40, "both have been replaced")
        load.more(100)
    assert lines <= 6, "with back-off"
    t = counted.tally(load.results, f.ids, [old[0]], claimed=f.claimed())
    print(t)
    t.clean(running=5)


def test_f5_environment_replaced(run: Run, in_venv: Hosted) -> None:
    """F5: the virtual environment is replaced under a running site, as a deploy does: nothing is lost, and after a touch
    the new one is used."""
    f = in_venv
    first = f.script.read_text()
    f.server.write("faults.wsgi", first + "\nimport which\nKEPT.append(which.NAME)\n", expand=False)
    old = f.workers()
    with f.load("venv") as load:
        wait_until(lambda: len(w := f.workers()) == 2 and not set(w) & set(old), 20, "rolled")
        for i in range(run.times(2, 5)):
            load.more(100)
            old = f.workers()
            assert {maps(pid, "venv") for pid in old} == {True}
            new = venv(f, f"venv-{i}")
            where = f.server.prefix / "venv"
            where.rename(f.server.prefix / f"old-{i}")
            new.rename(where)
            shutil.rmtree(f.server.prefix / f"old-{i}")
            load.more(100)
            assert f.workers() == old
            os.utime(f.script, (i + 10, i + 10))
            wait_until(lambda o=old: len(w := f.workers()) == 2 and not set(w) & set(o), 20, "rolled")
            load.more(50)
    t = counted.tally(load.results, f.ids)
    print(t)
    t.clean()


def maps(pid: int, word: str) -> bool:
    """Whether a process was started by a path with this word."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return word.encode() in file.read()
