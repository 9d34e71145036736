"""Workers that outlive their supervisor (L6, L9, DESIGN 2): what they say still arrives, how they end is known, they
serve until others can, and none is left."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal

import pytest

from harness.life import in_background, server
from harness.server import Server
from harness.wait import Timeout, wait_until

pytestmark = pytest.mark.ours


def kill_supervisor(one: Server) -> None:
    """SIGKILL, and waits until another one answers."""
    one.expect_log("MWR0301")
    (old,) = one.helpers("supervise")
    one.snapshot()
    old.kill()
    wait_until(lambda: [p for p in one.helpers("supervise") if p != old], 20, "a new supervisor")

    def answers() -> bool:
        with contextlib.suppress(AssertionError):
            return bool(one.pools())
        return False

    wait_until(answers, 20, "it answers")


def slow_start(one: Server) -> None:
    """From now on workers become ready when the test says so."""
    text = (one.apps / "life.wsgi").read_text()
    gate = "import os, time\nwhile not os.path.exists('{scratch}/gate'):\n    time.sleep(0.02)\n"
    one.write("life.wsgi", gate + text)


def test_a_long_request_ends_well(serve) -> None:
    """L6: a request that runs 5 s in a worker whose supervisor dies gets its answer; the worker then goes."""
    one = server(serve, processes=2)
    before = one.ready()
    slow = in_background(lambda: one.get("/sleep?5", timeout=20))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    kill_supervisor(one)
    wait_until(lambda: len(one.ready() - before) == 2, 20, "new workers")
    assert wait_until(lambda: slow, 10)[0].status == 200
    wait_until(lambda: not {w["pid"] for w in one.workers()} & before, 10, "the old ones have gone")
    # told why, as ever
    lines = (one.scratch / "stopping").read_text().splitlines()
    assert {int(line.split()[0]) for line in lines} == before
    assert {line.split()[1] for line in lines} == {"graceful_signal"}
    assert len(one.log.wait(r"left by a former supervisor, has ended \(graceful_signal\): exit code 0", count=2)) == 2


def test_what_it_says_arrives(serve) -> None:
    """L9: records of an old worker that belong to no request reach the log through the new supervisor, and status shows
    what it runs."""
    one = server(serve, "startup-timeout=60", processes=1)
    (old,) = one.ready()
    one.log.allow("said-by-the-old")
    late = in_background(lambda: one.get("/wait?speak", timeout=30))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    slow_start(one)
    kill_supervisor(one)
    (worker,) = [w for w in one.workers() if w["former"]]
    assert (worker["pid"], worker["state"], worker["running"]) == (old, "ready", 1)
    assert worker["under_way"][0]["line"] == "GET /wait?speak" and worker["rss"] > 1 << 20
    assert "GET /wait?speak" in one.ctl("status")
    one.log.allow(r"  File |Thread 0x|Current thread|<no Python frame>|^$|most recent call")
    stacks = one.ctl("stacks", "g")
    assert f"worker {old} of " in stacks and 'request "GET /wait?speak": application' in stacks
    assert "in wait_for" in stacks and one.log.find("in wait_for")
    assert one.get("/say?said-by-the-old").status == 200
    line = one.log.wait("said-by-the-old")[0]
    assert f"pid {old}" in line
    (one.scratch / "speak").touch()
    assert wait_until(lambda: late, 10)[0].status == 200
    (one.scratch / "gate").touch()
    wait_until(lambda: old not in {w["pid"] for w in one.workers()}, 20)


def test_why_it_died_is_told(serve) -> None:
    """L9: an old worker that crashes: signal and requests under way, in the log and in status."""
    one = server(serve, "startup-timeout=60", processes=1)
    (old,) = one.ready()
    lost = in_background(lambda: one.get("/wait?never", timeout=30))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    slow_start(one)
    kill_supervisor(one)
    one.expect_log(r'MWR0306: worker \d+ .*left by a former supervisor.*signal 9 .*"GET /wait\?never" \(application')
    one.expect_log("MWR0207")
    os.kill(old, signal.SIGKILL)
    assert wait_until(lambda: lost, 10)[0].status == 502
    wait_until(lambda: "GET /wait" in one.pools()[0]["last_exit"], 10)
    assert not one.log.find("for want of memory"), "somebody has killed it"
    (one.scratch / "gate").touch()
    wait_until(lambda: one.get("/").status == 200, 20)


def test_it_is_killed_in_the_end(serve) -> None:
    """L4, L6: an old worker that does not end in its time is killed, and the log says so."""
    one = server(serve, "graceful-timeout=0.5 shutdown-timeout=0.5", processes=1)
    (old,) = one.ready()
    os.kill(old, signal.SIGSTOP)
    kill_supervisor(one)
    one.expect_log(f"MWR0309: worker {old} of .*left by a former supervisor, did not end in time and was killed")
    wait_until(lambda: old not in {w["pid"] for w in one.workers()}, 20)
    one.log.wait(rf"worker {old} of .*has ended \(graceful_signal\): signal 9")
    assert len(one.log.find("MWR0309")) == 1
    assert one.get("/").status == 200


def test_broken_code_leaves_the_old_serving(serve) -> None:
    """L5, L6: the code on disk has been broken meanwhile: the workers of the dead supervisor serve on."""
    one = server(serve, processes=2)
    before = one.ready()
    good = (one.apps / "life.wsgi").read_text()
    one.expect_log("MWR0308")
    one.log.allow("MWR0433|Traceback|  File |RuntimeError|    ")
    one.write("life.wsgi", "raise RuntimeError('deliberate')\n")
    kill_supervisor(one)
    one.log.wait("MWR0308")
    for _ in range(10):
        r = one.get("/")
        assert r.status == 200 and int(r.text.split()[0]) in before
    one.write("life.wsgi", good)
    wait_until(lambda: len(one.ready() - before) == 2 and one.ready().isdisjoint(before), 30, "the mended code")
    assert one.get("/").status == 200


def test_they_serve_as_long_as_it_takes(serve) -> None:
    """L6: new workers that need longer than orphan-timeout (10 s) to start: the old ones serve all the time."""
    one = server(serve, "startup-timeout=60", processes=2)
    before = one.ready()
    slow_start(one)
    kill_supervisor(one)
    with pytest.raises(Timeout):
        wait_until(lambda: one.get("/", timeout=3).status != 200, 13, interval=0.2)
    assert one.ready() == before
    (one.scratch / "gate").touch()
    wait_until(lambda: len(one.ready()) == 2 and not one.ready() & before, 20)


def test_nobody_left(serve) -> None:
    """L6: keeper and supervisor are killed: the workers end their requests and themselves after orphan-timeout."""
    one = server(serve, "graceful-timeout=30", processes=2)
    one.log.allow("MWR0")
    workers = [p for p in one.processes() if p.pid in one.ready()]
    assert len(workers) == 2
    slow = in_background(lambda: one.get("/sleep?18", timeout=40))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    for p in one.helpers("keeper") + one.helpers("supervise"):
        p.kill()
    assert wait_until(lambda: slow, 30)[0].status == 200, "it ran beyond orphan-timeout and shutdown-timeout"
    wait_until(lambda: not any(p.alive() for p in workers), 20, "the workers have gone")
    one.graceful()
    wait_until(lambda: one.get("/").status == 200, 20, "nothing of the old is in the way of a new keeper")


def test_many_of_them(serve) -> None:
    """DESIGN 2: also forty workers are handed over."""
    one = server(serve, processes=40)
    before = one.ready()
    good = (one.apps / "life.wsgi").read_text()
    one.log.allow("MWR0308|MWR0433|Traceback|  File |RuntimeError|    ")
    one.write("life.wsgi", "raise RuntimeError('not yet')\n")
    kill_supervisor(one)
    assert {w["pid"] for w in one.workers() if w["former"]} == before
    (new,) = one.helpers("supervise")
    held = set(map(os.readlink, pathlib.Path(f"/proc/{new.pid}/fd").iterdir()))
    outputs = {os.readlink(f"/proc/{pid}/fd/{n}") for pid in before for n in (1, 2)}
    assert outputs <= held and len(outputs) == 80, "what they write has a reader"
    one.write("life.wsgi", good)
    one.ctl("reload", "g")
    wait_until(lambda: len(one.ready()) == 40 and not one.ready() & before, 60)
    assert one.get("/").status == 200
    assert not one.log.find("MWR0311")
