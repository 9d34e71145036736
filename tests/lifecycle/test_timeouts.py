"""Deadlines of requests and of the interpreter (L2, L3, L4): each works alone, and only what is late pays for it."""

from __future__ import annotations

import os
import signal
import time

import pytest

from harness import life
from harness.life import in_background
from harness.load import Load
from harness.plan import Plan
from harness.server import Server
from harness.wait import wait_until

pytestmark = pytest.mark.ours
STACKS = r"  File |Thread 0x|Current thread 0x|Extension modules|\(most recent call first\)|<no Python frame>|^$"


def server(serve, options: str, processes: int = 1, **plan) -> Server:
    one = life.server(serve, options, processes, plan)
    one.log.allow(STACKS)
    return one


def lingering(serve, options: str, processes: int) -> Server:
    """The same with an exit handler that takes all the time it may."""
    one = serve(Plan(f"processes={processes} threads=3 {options}"), start=False)
    text = (one.apps / "life.wsgi").read_text()
    one.write("life.wsgi", text + "\nimport atexit\natexit.register(time.sleep, 60)\n")
    one.start()
    wait_until(lambda: len(one.ready()) == processes, what="workers are ready")
    one.log.allow(STACKS)
    return one


@pytest.mark.everywhere
def test_request_timeout(serve) -> None:
    """L2: 504, request line and stacks of all threads in the log; only that worker is replaced, and another request in
    it ends first."""
    one = server(serve, "request-timeout=1 graceful-timeout=20", processes=2)
    one.expect_log("MWR0436")
    before = one.ready()
    stuck = in_background(lambda: one.get("/wait?never", timeout=20))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    began = time.monotonic()
    with Load(one.port, "/sleep?0.02", clients=2) as load:
        assert wait_until(lambda: stuck, 10)[0].status == 504
        assert 0.5 < time.monotonic() - began < 3
        lines = one.log.wait("MWR0436.*GET /wait.never.*request-timeout")
        assert "has run for 1." in lines[0]
        one.log.wait(r"File .*life\.wsgi.* in wait_for")
        wait_until(lambda: len(before - one.ready()) == 1 and len(one.ready()) == 2, 10, "one is replaced")
        load.more(50)
    assert not load.bad, load.bad[:3]
    one.log.wait(r"has ended \(request_timeout\)")
    assert len(before & one.ready()) == 1


def test_other_requests_of_a_stuck_worker_end_well(serve) -> None:
    """L2: what runs beside the stuck request in the same worker is finished."""
    places = {"/sleep": {"request_timeout": "0"}}
    one = server(serve, "request-timeout=0.5 graceful-timeout=20", places=places)
    one.expect_log("MWR0436")
    (before,) = one.ready()
    slow = in_background(lambda: one.get("/sleep?3", timeout=20))
    stuck = in_background(lambda: one.get("/wait?never", timeout=20))
    assert wait_until(lambda: stuck, 10)[0].status == 504
    wait_until(lambda: before not in one.ready(), 10)
    assert not slow, "the successor serves while the old worker waits for its other request"
    r = wait_until(lambda: slow, 10)[0]
    assert r.status == 200 and int(r.text.split()[0]) == before


def test_per_location(serve) -> None:
    """L2: WSGIRequestTimeout of a place replaces that of the group; 0 is never."""
    places = {"/sleep": {"request_timeout": "0"}, "/spin": {"request_timeout": "30"}}
    one = server(serve, "request-timeout=1", places=places)
    before = one.ready()
    assert one.get("/sleep?1.6").status == 200
    assert one.get("/spin?1.2").status == 200
    assert one.ready() == before
    one.expect_log("MWR0436")
    assert one.get("/alloc?1").status == 200
    assert one.get("/wait?never").status == 504


def test_at_most_one_replacement(serve) -> None:
    """L2, pitfall 7.6: a database that does not answer makes one worker start anew, not all at once."""
    one = lingering(serve, "request-timeout=0.5 shutdown-timeout=1 reload-surge=3", processes=3)
    one.log.allow("MWR0436")
    before = wait_until(lambda: len(r := one.ready()) == 3 and r)
    answers = [in_background(lambda: one.get("/wait?never", timeout=20)) for _ in range(9)]
    least, under_way = 3, 0

    def look() -> bool:
        nonlocal least, under_way
        states = [w["state"] for w in one.workers()]
        least = min(least, states.count("ready"))
        under_way = max(under_way, states.count("draining") + states.count("exiting"))
        return all(answers)

    wait_until(look, 20, "all are answered")
    assert {a[0].status for a in answers} == {504}
    wait_until(lambda: look() and not one.ready() & before and len(one.ready()) == 3, 40, "one after the other goes")
    assert least == 3 and under_way == 1
    assert one.get("/").status == 200


def test_one_that_comes_back_stays(serve) -> None:
    """L2: a worker whose late request has ended by itself, while another one was being replaced, is not replaced."""
    one = lingering(serve, "request-timeout=0.5 shutdown-timeout=4", processes=2)
    one.expect_log("MWR0436.*GET /wait.never")
    one.expect_log("MWR0436.*GET /sleep.1.5")
    assert one.get("/wait?never", timeout=20).status == 504
    wait_until(lambda: [w["state"] for w in one.workers()].count("exiting") == 1, what="one is replaced")
    wait_until(lambda: len(one.ready()) == 2)
    there = one.ready()
    assert one.get("/sleep?1.5", timeout=20).status == 504
    wait_until(lambda: any(w["stuck"] for w in one.workers() if w["state"] == "ready"), what="it is known as stuck")
    one.log.wait(r"has ended \(request_timeout\)")
    wait_until(lambda: not any(w["stuck"] for w in one.workers()) and one.ready() == there, what="all is as it was")
    assert len(one.log.find("of its requests are stuck")) == 1


def test_interrupt(serve) -> None:
    """L3: the exception ends the request, its traceback says where it was; the worker stays."""
    one = server(serve, "request-timeout=0.5 interrupt-timeout=5")
    before = one.ready()
    one.expect_log("MWR0437.*GET /wait.never")
    one.expect_log("MWR0430: exception mod_wsgi.RequestTimeout")
    one.log.allow("Traceback|RequestTimeout|    [a-z]|  \\^\\^")
    assert one.get("/wait?never").status == 504
    one.log.wait(r'life\.wsgi", line \d+, in wait_for')
    for _ in range(20):
        assert one.get("/").status == 200
    assert one.ready() == before


def test_an_application_may_answer_the_interruption(serve) -> None:
    """L3: what the application makes of the exception is its answer."""
    one = server(serve, "request-timeout=0.5 interrupt-timeout=5")
    one.expect_log("MWR0437")
    r = one.get("/catch?never")
    assert (r.status, r.text.split()[1]) == (200, "caught")


def test_an_interruption_that_does_not_help(serve) -> None:
    """L3: code outside the interpreter is not reached; after interrupt-timeout it is as without."""
    one = server(serve, "request-timeout=0.5 interrupt-timeout=0.5")
    before = one.ready()
    one.expect_log("MWR0437")
    one.expect_log("MWR0436")
    began = time.monotonic()
    assert one.get("/sleep?30").status == 504
    assert 0.9 < time.monotonic() - began < 3
    wait_until(lambda: one.ready() and not one.ready() & before, 10)


def test_deadlock(serve) -> None:
    """L4: a thread that keeps the GIL for ever: stacks, replacement, 502 for what ran, other requests served."""
    one = server(serve, "deadlock-timeout=1 shutdown-timeout=1")
    one.expect_log("MWR0438")
    one.log.allow("MWR0207")
    before = one.ready()
    stuck = in_background(lambda: one.get("/hold?60", timeout=30))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    other = in_background(lambda: one.get("/", timeout=30))
    assert wait_until(lambda: other, 15)[0].status == 200
    assert wait_until(lambda: stuck, 15)[0].status == 502
    one.log.wait(r"in hold")
    assert not one.ready() & before


def test_a_stopped_worker(serve) -> None:
    """L4: a process that is stopped can say nothing of itself; it is replaced and killed, its requests get 502."""
    one = server(serve, "deadlock-timeout=0.5 shutdown-timeout=0.5")
    (victim,) = one.ready()
    stuck = in_background(lambda: one.get("/wait?never", timeout=30))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    os.kill(victim, signal.SIGSTOP)
    one.expect_log(f"MWR0318: worker {victim} ")
    one.expect_log("MWR0309")
    one.expect_log("MWR0207")
    assert wait_until(lambda: stuck, 20)[0].status == 502
    assert one.get("/").status == 200
    assert victim not in one.ready()


def test_a_slow_start_has_its_own_message(serve) -> None:
    """L4: startup-timeout counts from the start of the process; the message says so, requests get 503."""
    one = serve(Plan("processes=1 threads=3 startup-timeout=1"), start=False)
    one.write("life.wsgi", "import time\ntime.sleep(60)\n")
    one.start()
    one.log.allow("MWR020[34]|MWR0309")
    one.expect_log("MWR0305.*it was not ready within 1 s")
    assert one.get("/", timeout=20).status == 503


@pytest.mark.on("event", "prefork")
def test_a_script_that_loads_too_long(serve) -> None:
    """L4: the same for a script that loads at its first request: 504, and the worker is replaced. (nginx names every
    script; all are loaded when workers start.)"""
    late = "WSGIScriptAliasMatch ^/late/(.*) {apps}/$1.wsgi process-group=g application-group=%{GLOBAL}\n"
    one = serve(Plan("processes=1 threads=3 startup-timeout=1", own={"apache": late}))
    one.log.allow(STACKS)
    wait_until(one.ready)
    one.write("sleeper.wsgi", "import time\ntime.sleep(60)\n")
    before = one.ready()
    one.expect_log("MWR0439.*GET /late/sleeper.*startup-timeout")
    assert one.get("/late/sleeper", timeout=20).status == 504
    wait_until(lambda: one.ready() and not one.ready() & before, 15)
    one.log.wait(r"has ended \(startup_timeout\)")


def test_eviction(serve) -> None:
    """L4: SIGUSR1 to a worker: the successor first, running requests end. They get eviction-timeout: the other two would
    not be enough."""
    one = server(serve, "eviction-timeout=10 graceful-timeout=0.1 shutdown-timeout=0.1")
    (victim,) = one.ready()
    slow = in_background(lambda: one.get("/sleep?1.5", timeout=20))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    os.kill(victim, signal.SIGUSR1)
    r = wait_until(lambda: slow, 10)[0]
    assert r.status == 200 and int(r.text.split()[0]) == victim
    one.log.wait(r"has ended \(eviction_signal\)")
    assert one.ready() and victim not in one.ready()


def test_eviction_is_bounded(serve) -> None:
    """L4: requests get eviction-timeout and no more, however long graceful-timeout is; a reload gives them that."""
    one = server(serve, "eviction-timeout=0.3 graceful-timeout=40 shutdown-timeout=0.3")
    one.log.allow("MWR0309|MWR0207")
    (victim,) = one.ready()
    lost = in_background(lambda: one.get("/wait?never", timeout=30))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    os.kill(victim, signal.SIGUSR1)
    assert wait_until(lambda: lost, 15)[0].status == 502
    one.log.wait(r"has ended \(eviction_signal\)")
    (reloaded,) = wait_until(one.ready)
    slow = in_background(lambda: one.get("/sleep?1.5", timeout=20))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    one.ctl("reload", "g")
    r = wait_until(lambda: slow, 10)[0]
    assert r.status == 200 and int(r.text.split()[0]) == reloaded


def test_what_a_dead_worker_was_doing(serve) -> None:
    """L9: the line about a death names the requests that ran, with their phase and age; `ctl status` repeats it."""
    one = server(serve, "")
    (victim,) = one.ready()
    lost = in_background(lambda: one.get("/wait?never&secret=no", timeout=20))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    os.kill(victim, signal.SIGKILL)
    one.expect_log(r'MWR0306.*signal 9.*under way: "GET /wait\?never&secret=no" \(application, \d')
    one.expect_log("MWR0207")
    assert wait_until(lambda: lost, 10)[0].status == 502
    assert any("GET /wait" in p["last_exit"] for p in one.pools())
    assert not one.log.find("for want of memory"), "somebody has killed it"
