"""Deadlines of requests at the worker itself (L2, L3)."""

import random
import threading
import time
from pathlib import Path

import pytest
from worker.driver import wait_for

from worker import driver

APP = Path(__file__).with_name("deadlines.wsgi")
NEVER = 2**32 - 1


def start(newest, **plan):
    w = newest(preload=[(APP, "application")], **plan)
    w.script = APP
    w.wait_ready()
    return w


def race(worker, rounds):
    """Deadlines that expire around the end of requests, from several connections; after each of them a request without a
    deadline, on the same few threads. Gives how many were late, and how many were not."""
    late, good = [], []
    faults = []

    def client(seed):
        numbers = random.Random(seed)
        try:
            with worker.connect() as c:
                for i in range(rounds):
                    kind = ("list", "close")[i % 2]
                    name = f"{seed}-{i}"
                    r = c.request(f"/{kind}/{numbers.randint(0, 12_000)}/{name}", row=seed)
                    if r.abort == driver.TIMEOUT:
                        late.append(name)
                        # given back by the worker's thread itself: the connection goes on
                        assert r.done
                    else:
                        assert r.abort is None and r.body == f"{name}!".encode(), (vars(r), worker.messages[-6:])
                        assert not r.logs, r.logs
                        good.append(name)
                    innocent = c.request(f"/{kind}/300/innocent-{name}", row=seed, timeout=NEVER)
                    assert innocent.abort is None and innocent.body == f"innocent-{name}!".encode(), vars(innocent)
                    assert not innocent.logs, innocent.logs
        except BaseException as e:
            faults.append(e)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if faults:
        raise faults[0]
    return len(late), len(good)


def judge(worker, rounds):
    late, good = race(worker, rounds)
    assert late + good == 4 * rounds
    # both happen often: the deadlines are where the requests end
    assert min(late, good) > 0.15 * (late + good), (late, good)
    texts = [m["text"] for m in worker.messages if m["op"] == "log"]
    assert not [t for t in texts if "MWR0432" in t or "MWR0424" in t], texts[:5]
    assert worker.process.poll() is None


PLAN = {"request_timeout": 0.004, "interrupt_timeout": 30.0, "threads": 4, "rows": 8}


def test_deadlines_around_the_end_of_requests(newest):
    """L3, pitfall 7.1: the exception hits no other request."""
    judge(start(newest, **PLAN), 200)


@pytest.mark.long
def test_ten_thousand_deadlines(newest):
    """L3: the same ten thousand times."""
    judge(start(newest, **PLAN), 2500)


def test_given_up_at_the_end(newest):
    """L2: the same race without interruption: an answer is whole, or ABORT and the end of the connection; never both."""
    w = start(newest, request_timeout=0.004, threads=4, rows=8)
    outcomes = {"late": 0, "good": 0}
    numbers = random.Random(7)
    for i in range(300):
        with w.connect() as c:
            row = c.post(f"/list/{numbers.randint(0, 12_000)}/{i}", row=i % 8)
            kinds = []
            body = b""
            try:
                while True:
                    kind, flags, payload = c.frame()
                    kinds.append(kind)
                    if kind == driver.ABORT:
                        assert payload == bytes([driver.TIMEOUT])
                    elif kind == driver.RESPONSE:
                        body = payload
                        if flags & driver.F_DONE:
                            break
            except (EOFError, ConnectionError, AssertionError):
                assert kinds == [driver.ABORT], kinds
            outcomes["late" if kinds == [driver.ABORT] else "good"] += 1
            if kinds != [driver.ABORT]:
                assert body.endswith(f"{i}!".encode())
                w.table.wait_free(row)
                assert c.request(f"/list/0/after-{i}", row=i % 8, timeout=NEVER).body == f"after-{i}!".encode()
            w.table.wait_free(row)
    assert min(outcomes.values()) > 30, outcomes
    stuck = [m for m in w.messages if m["op"] == "stuck"]
    assert len(stuck) == outcomes["late"] and {m["reason"] for m in stuck} == {"request"}


def test_time_spent_on_the_client_does_not_count(newest):
    """L2, pitfall 7.5: a response that nobody reads for longer than the deadline is no late request."""
    w = start(newest, request_timeout=1.0)
    with w.connect() as c:
        # computes for a while once it has been read: it still has all of its time but what it has used itself
        c.post("/flood/300000/200")
        assert c.frame()[0] == driver.RESPONSE
        end = time.monotonic() + 1.8
        while time.monotonic() < end:
            assert not [m for m in w.messages if m["op"] == "stuck"]
            time.sleep(0.05)
        r = c.response()
        assert r.abort is None and r.ended
    with w.connect() as c:
        c.post("/list/3000000/slow")
        wait_for(lambda: [m for m in w.messages if m["op"] == "stuck"], "the deadline of one that computes")
