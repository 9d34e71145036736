"""F11: everything at once, at random: nothing is lost but what ran in processes that were killed, nothing is served
twice. And the same few faults on the peers, for the table."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable

import pytest

from harness import counted, procs
from harness.front import OURS, PEERS, THREADS, Front, Hosted
from harness.slow import Slow
from harness.wait import Timeout, wait_until

from .conftest import Row, Run, Table

pytestmark = [pytest.mark.ours, pytest.mark.timeout(900)]
Make = Callable[..., Hosted]


def test_f11_everything_at_random(run: Run, front: Make, table: Table) -> None:
    """F11: reloads of server and workers, touches, scaling, kills of workers and of the supervisor, at random, for five
    minutes (short form: 12 s) under load."""
    f = front()
    f.server.allow_log(r"MWR0301|MWR0306|MWR0207|MWR0309")
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    killed: set[int] = set()
    done: dict[str, int] = {}
    last_kill = 0.0

    def kill_worker() -> None:
        nonlocal last_kill
        # a worker that dies again and again is started with back-off: that is another test's matter
        if time.monotonic() - last_kill < 2.5:
            return
        workers = _ready(f)
        if len(workers) > 1:
            last_kill = time.monotonic()
            victim = procs.look(chance.choice(workers))
            if victim:
                killed.add(victim.pid)
                victim.kill()

    def kill_supervisor() -> None:
        for p in f.server.helpers("supervise"):
            if p.age() > 5:
                p.kill()

    def ctl(*words: str) -> None:
        # not while a supervisor is being replaced
        with contextlib.suppress(AssertionError, StopIteration):
            f.server.ctl(*words)

    acts = {
        "graceful": lambda: os.kill(f.server.pid, f.server.RELOAD),
        "touch": lambda: os.utime(f.script),
        "kill": kill_worker,
        "reload": lambda: ctl("reload"),
        "scale up": lambda: ctl("scale", "g", "3"),
        "scale down": lambda: ctl("scale", "g", "1"),
        "supervisor": kill_supervisor,
    }
    weights = [3, 4, 4, 3, 1, 1, 1]
    with f.load("chaos") as load:
        until = time.monotonic() + run.times(12, 300)
        while time.monotonic() < until:
            [name] = chance.choices(list(acts), weights)
            done[name] = done.get(name, 0) + 1
            acts[name]()
            time.sleep(chance.uniform(0.05, 1.2))
            f.server.snapshot()
        load.more(100, 60)
    ctl("scale", "g", "2")
    t = counted.tally(load.results, f.ids, killed, claimed=f.claimed())
    print(f"seed {seed}", done, t)
    assert sum(done.values()) > 5
    table.add(Row(f"{sum(done.values())} random acts", run.kind, t))
    t.clean(running=THREADS * len(killed))
    wait_until(lambda: _ready(f) and _idle(f), 30, "all rows are free")


def _ready(f: Hosted) -> list[int]:
    try:
        return f.workers()
    except (AssertionError, StopIteration):
        return []


def _idle(f: Hosted) -> bool:
    return all((w["sent"], w["running"]) == (0, 0) for w in f.server.workers() if w["state"] == "ready")


#: what is done to every server of the table, how often
COMMON = ("nothing", "workers killed", "graceful reloads", "touched script", "slow readers", "slow senders")


@pytest.mark.long
@pytest.mark.parametrize("what", COMMON)
@pytest.mark.parametrize("kind", [*OURS, *PEERS])
def test_table(kind: str, what: str, front_of: Callable[..., Front], table: Table) -> None:
    """The same faults on ours and on the peers: 8 clients, 2 processes of 5 threads. Ours must hold; of the peers it is
    written down what happens."""
    f = front_of(kind)
    ours = isinstance(f, Hosted) and f.ours
    if isinstance(f, Hosted):
        f.server.allow_log("." if not ours else r"MWR0306|MWR0207")
    killed: list[int] = []
    with contextlib.ExitStack() as stack:
        if what.startswith("slow"):
            stack.enter_context(Slow(f.port, "read" if "readers" in what else "send", 30, 10))
        with f.load("table") as load:
            began = time.monotonic()
            for _ in range(8):
                time.sleep(0.9)
                if what == "workers killed":
                    with contextlib.suppress(Timeout):
                        victim = procs.look(f.settled(5)[0])
                        if victim:
                            killed.append(victim.pid)
                            victim.kill()
                elif what == "graceful reloads":
                    f.reload()
                elif what == "touched script":
                    os.utime(f.script)
            if load.count() < 3200 and time.monotonic() - began < 20:
                with contextlib.suppress(AssertionError):
                    load.more(3200 - load.count(), 12)
    claimed = f.claimed() if isinstance(f, Hosted) and f.ours else []
    t = counted.tally(load.results, f.ids, killed, claimed=claimed)
    print(f.name, what, t)
    table.add(Row(what, f.name, t))
    if ours:
        t.clean(running=THREADS * len(killed))
