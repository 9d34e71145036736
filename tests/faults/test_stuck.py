"""F7 and F10: workers that do not get on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from harness import counted, http, procs
from harness.front import THREADS, Hosted
from harness.wait import wait_until

from .conftest import Run

pytestmark = [pytest.mark.ours, pytest.mark.timeout(300)]
Make = Callable[..., Hosted]


def test_f10_a_wedged_worker_beside_a_healthy_one(run: Run, front: Make) -> None:
    """F10: one thread of one worker keeps the GIL for 10 s: what waits there is recalled to the healthy one; only what
    had begun in the wedged one waits with it."""
    f = front()
    f.server.allow_log(r"MWR0326|MWR0327|MWR0434|deadlock")
    seconds = 10 if run.long else 4
    with f.load("before") as load:
        load.more(500)
    calm = counted.tally(load.results, f.ids)
    calm.clean()
    answers = []

    def wedge() -> None:
        answers.append(f.get(f"/gil?id=wedge&seconds={seconds}", timeout=30))

    t = threading.Thread(target=wedge)
    with f.load("wedge") as load:
        load.more(50)
        t.start()
        wait_until(lambda: (f.scratch / "gil").exists(), 10, "it holds")
        began = time.monotonic()
        load.more(500)
        t.join()
        until = time.monotonic()
        load.more(50)
    [pid] = counted.begun(f.ids)["wedge"]
    tally = counted.tally(load.results, f.ids)
    print(calm, tally, sep="\n")
    tally.clean()
    assert answers[0].status == 200 and answers[0].body == counted.payload("wedge", 100)
    ran = counted.begun(f.ids)
    during = [r for r in load.results if began < r.at < until - 1]
    assert len(during) > 400
    healthy = [r for r in during if ran[r.name] != [pid]]
    # what the wedged one had claimed but not begun in the application waits too: its threads have the GIL to wait for
    slow = [r for r in during if r.took > 1]
    assert len(slow) <= THREADS, f"{len(slow)} of {len(during)} waited for the wedged worker"
    assert len(healthy) >= len(during) - THREADS
    assert counted.quantile([r.took for r in healthy], 0.99) < calm.worst + 0.15


def test_f10_a_stopped_worker(run: Run, front: Make) -> None:
    """F10: a worker that is stopped (SIGSTOP) takes nothing: what was sent to it is recalled."""
    import os
    import signal

    f = front()
    f.server.allow_log(r"MWR03\d\d|deadlock|MWR0207")
    with f.load("stop") as load:
        load.more(100)
        [victim, _] = f.settled()
        os.kill(victim, signal.SIGSTOP)
        try:
            began = time.monotonic()
            load.more(500)
            assert time.monotonic() - began < 10
        finally:
            os.kill(victim, signal.SIGCONT)
        load.more(100)
    t = counted.tally(load.results, f.ids)
    print(t)
    t.clean()
    slow = [r for r in load.results if r.took > 1]
    assert len(slow) <= THREADS, "only what it had claimed waits"


def hold(f: Hosted, n: int, gate: str) -> list[http.Connection]:
    """Requests that stay until the gate opens."""
    held = [http.Connection(f.port) for _ in range(n)]
    for i, c in enumerate(held):
        c.send(http.build("GET", f"/gate?id={gate}-{i}&gate={gate}"))
    return held


def test_f7_all_threads_stuck(run: Run, front: Make) -> None:
    """F7: every thread stuck and the queue full: 503 with Retry-After at once, 504 after queue-timeout; all is well
    again when the threads are free, without a hand."""
    f = front(options="queue-limit=6 queue-timeout=2")
    f.server.expect_log("MWR0205: process group 'g': queue is full")
    f.server.expect_log("MWR0206: process group 'g': request waited 2 s")
    f.settled()
    stuck = hold(f, 2 * THREADS, "stuck")
    try:
        wait_until(lambda: sum(n.startswith("stuck-") for n in counted.begun(f.ids)) == 2 * THREADS, 10, "all stuck")
        waiting = [http.Connection(f.port) for _ in range(6)]
        for i, c in enumerate(waiting):
            c.send(http.build("GET", f"/exact?id=waiting-{i}"))
        wait_until(lambda: sum(w["sent"] for w in f.server.workers()) == 6, 2, "the queue is full")
        began = time.monotonic()
        r = f.get("/exact?id=over")
        assert r.status == 503 and r.header("Retry-After") == "1" and time.monotonic() - began < 0.5
        for c in waiting:
            assert c.response().status == 504
            c.close()
        assert time.monotonic() - began < 4
        (f.scratch / "stuck").touch()
        for i, c in enumerate(stuck):
            assert c.response().body == counted.payload(f"stuck-{i}", 100)
        assert f.get("/exact?id=after").status == 200
    finally:
        for c in stuck:
            c.close()
    ran = counted.begun(f.ids)
    assert not [n for n in ran if n.startswith(("waiting", "over"))], "what was refused has not run"


def replaced(f: Hosted, pid: int, deadline: float = 30) -> None:
    wait_until(lambda: len(w := f.workers()) == 2 and pid not in w, deadline, f"{pid} is replaced")


def test_f7_request_timeout(run: Run, front: Make) -> None:
    """F7: a stuck request: its client gets 504, stacks and request line are in the log, its worker alone is replaced
    once its others have ended; nothing else is lost."""
    f = front(options="request-timeout=1 graceful-timeout=5")
    f.server.allow_log(
        r"MWR0\d\d\d|\]   File |Thread 0x|Current thread|most recent call|\[pid \d+\] $|<no Python frame>"
    )
    with f.load("timeout") as load:
        for i in range(run.times(1, 5)):
            f.settled()
            load.more(50)
            began = time.monotonic()
            r = f.get(f"/slow?id=stuck-{i}&seconds=8")
            took = time.monotonic() - began
            assert r.status == 504 and 0.9 < took < 2.5, (r.status, took)
            [pid] = counted.begun(f.ids)[f"stuck-{i}"]
            replaced(f, pid)
        load.more(50)
    assert f.server.log.find(r"stuck-0"), "the request line is in the log"
    assert f.server.log.find(r"faults.wsgi.*in slow"), "the stack is in the log"
    t = counted.tally(load.results, f.ids)
    print(t)
    t.clean()


def test_f7_deadlocked_application(run: Run, front: Make) -> None:
    """F7: two requests that wait for each other for ever, in each worker: 504, replaced, and no hand is needed."""
    f = front(options="request-timeout=1 graceful-timeout=2 shutdown-timeout=1")
    f.server.allow_log(
        r"MWR0\d\d\d|\]   File |Thread 0x|Current thread|most recent call|\[pid \d+\] $|<no Python frame>"
    )
    before = f.settled()
    with f.load("dead", clients=4) as load:
        load.more(50)
        results: list[int] = []

        def ask(order: str, n: int) -> None:
            results.append(f.get(f"/deadlock?id=dead-{order}-{n}&order={order}").status)

        threads = [threading.Thread(target=ask, args=(o, n)) for o in ("01", "10") for n in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert 504 in results and set(results) <= {200, 504}, results
        hit = {
            p for n, w in counted.begun(f.ids).items() if n.startswith("dead-0") or n.startswith("dead-1") for p in w
        }
        assert hit & set(before)
        wait_until(lambda: len(w := f.workers()) == 2 and len(set(w) & hit) < len(hit), 40, "replaced")
        load.more(50)
    t = counted.tally(load.results, f.ids, hit, claimed=f.claimed())
    print(t)
    t.clean(running=THREADS)


def test_f7_gil_held_by_c_code(run: Run, front: Make) -> None:
    """F7: C code keeps the GIL for longer than deadlock-timeout: stacks in the log, the worker is replaced, the others
    go on; only what it had begun is lost, with an honest error."""
    f = front(options="deadlock-timeout=2 graceful-timeout=1 shutdown-timeout=1")
    f.server.allow_log(
        r"MWR0\d\d\d|\]   File |Thread 0x|Current thread|most recent call|\[pid \d+\] $|<no Python frame>"
    )
    statuses: list[int] = []
    with f.load("gil") as load:
        load.more(50)
        t = threading.Thread(target=lambda: statuses.append(f.get("/gil?id=hold&seconds=40", timeout=60).status))
        t.start()
        wait_until(lambda: (f.scratch / "gil").exists(), 10, "it holds")
        [pid] = counted.begun(f.ids)["hold"]
        replaced(f, pid, 30)
        t.join(30)
        load.more(50)
    assert not procs.look(pid)
    assert statuses and statuses[0] in (502, 504)
    assert f.server.log.find(r"faults.wsgi.*in gil"), "the stack is in the log"
    tally = counted.tally(load.results, f.ids, [pid], claimed=f.claimed())
    print(tally)
    tally.clean(running=THREADS)
