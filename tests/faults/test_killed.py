"""F1 to F4: processes that die under load. Every request has a number, the application notes which it begins, the clients
check every byte: at the end each number is accounted for."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from harness import counted, http, procs
from harness.front import THREADS, Hosted
from harness.wait import wait_until

from .conftest import Run

pytestmark = [pytest.mark.ours, pytest.mark.timeout(600)]
Make = Callable[..., Hosted]
#: what the log says of a dead worker and of the requests it had
DEATH = r"MWR0306: worker \d+ of group \"g\" ended unexpectedly with "
FAILED = r"MWR0207: process group 'g': worker \d+ died or closed the connection while it ran the request"


def kill(pid: int, sig: int = signal.SIGKILL) -> None:
    """One worker ends, and is seen to have ended."""
    p = procs.look(pid)
    assert p
    p.kill(sig)
    wait_until(lambda: not p.alive(), 5, f"{pid} has ended")


def test_f1_workers_killed_under_load(run: Run, front: Make) -> None:
    """F1: SIGKILL of one of two workers, again and again: only what ran in it fails, what waited is served elsewhere."""
    f = front()
    f.server.expect_log(DEATH + "signal 9")
    f.server.allow_log(FAILED)
    killed = []
    with f.load("kill") as load:
        for _ in range(run.times()):
            load.more(100)
            pid = f.settled()[0]
            kill(pid)
            killed.append(pid)
        f.settled()
        load.more(300)
    t = counted.tally(load.results, f.ids, killed, claimed=f.claimed())
    print(t)
    t.clean(running=THREADS * len(killed))
    assert len(f.server.log.find(DEATH)) == len(killed)
    # each failure has its line, with what was asked for
    assert len(f.server.log.find(FAILED)) == len(t.running)


def test_f1_all_workers_killed_at_once(run: Run, front: Make) -> None:
    """F1: both workers killed at the same moment: requests wait for the next ones, none but the running fail."""
    f = front()
    f.server.expect_log(DEATH)
    f.server.allow_log(FAILED)
    killed = []
    with f.load("all") as load:
        for _ in range(run.times(1, 3)):
            load.more(100)
            both = f.settled()
            for pid in both:
                procs.look(pid).kill()  # type: ignore[union-attr]
            killed += both
            load.more(50)
        f.settled()
    t = counted.tally(load.results, f.ids, killed, claimed=f.claimed())
    print(t)
    t.clean(running=THREADS * len(killed))


#: what faulthandler writes; a thread of ours that asks for the GIL at that moment has no frame
CRASH = r"Fatal Python error|\]   (File |<no Python frame>)|Current thread|Thread 0x|Extension modules|\[pid \d+\] $"
CRASHES = {"segv": "signal 11", "abort": "signal 6", "exit": "exit code 3", "kill": "signal 9"}


@pytest.mark.parametrize("how", CRASHES)
def test_f1_crash_inside_a_request(run: Run, front: Make, how: str) -> None:
    """F1: a segfault in C code, abort, os._exit, SIGKILL of itself: 502 for it, the log names how, the queue behind it is
    served elsewhere."""
    f = front(options="queue-limit=100")
    f.server.expect_log(DEATH + CRASHES[how])
    f.server.expect_log(FAILED)
    f.server.allow_log(CRASH)
    with f.load("crash", clients=4) as load:
        for i in range(run.times(2, 10)):
            f.settled()
            load.more(30)
            r = f.get(f"/crash?id=crash-{how}-{i}&how={how}")
            assert r.status == 502 and r.complete
        load.more(50)
        killed = {pid for pids in counted.begun(f.ids).values() for pid in pids} - set(f.settled())
    t = counted.tally(load.results, f.ids, killed, claimed=f.claimed())
    print(t)
    t.clean(running=THREADS * run.times(2, 10))
    assert all(len(counted.begun(f.ids)[f"crash-{how}-{i}"]) == 1 for i in range(run.times(2, 10))), "never sent again"
    # the request that did it can be found
    assert len(f.server.log.find(r"MWR0306.*; under way: .*GET /crash")) == run.times(2, 10), (
        "the request line is named"
    )


@pytest.fixture
def memory_group() -> Iterator[pathlib.Path]:
    """A control group of this test's own in which 150 MiB of memory may be used."""
    for base, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        path = pathlib.Path(base) / f"mwr-faults-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        if (path / limit).exists():
            break
        path.rmdir()
    else:
        pytest.skip("no control group with a limit of memory can be made here")
    try:
        (path / limit).write_text(str(150 << 20))
        yield path
    finally:
        # its processes have been killed or end with their server: those that still run go back to where they came from
        for pid in (path / "cgroup.procs").read_text().split():
            try:
                (path.parent / "cgroup.procs").write_text(pid)
            except OSError:
                continue
        wait_until(lambda: not (path / "cgroup.procs").read_text().split(), 10, "the group is empty")
        path.rmdir()


@pytest.mark.root
def test_f1_killed_for_want_of_memory(run: Run, front: Make, memory_group: pathlib.Path) -> None:
    """F1: the kernel kills a worker that has outgrown its control group: as for any other death."""
    f = front()
    f.server.expect_log(DEATH + "signal 9")
    f.server.expect_log(FAILED)
    victim = f.settled()[0]
    (memory_group / "cgroup.procs").write_text(str(victim))
    with f.load("oom", clients=4) as load:
        load.more(50)
        # both workers are asked until the small one has it
        statuses = []

        def grow() -> None:
            try:
                statuses.append(f.get("/crash?id=grow&how=memory", timeout=60).status)
            except OSError as e:
                statuses.append(repr(e))

        # in the small one only: the other would fill the machine
        os.kill(f.settled()[1], signal.SIGSTOP)
        stopped = f.settled()[1]
        try:
            t = threading.Thread(target=grow)
            t.start()
            wait_until(lambda: "grow" in counted.begun(f.ids), 10, "it has begun")
        finally:
            os.kill(stopped, signal.SIGCONT)
        t.join(60)
        assert counted.begun(f.ids)["grow"] == [victim] and statuses == [502]
        f.settled()
        load.more(50)
    tally = counted.tally(load.results, f.ids, [victim], claimed=f.claimed())
    print(tally)
    tally.clean(running=THREADS)


def children(f: Hosted, n: int) -> list[procs.Process]:
    """Waits for so many children of /fork."""
    forked = f.scratch / "forked"

    def all_of_them() -> list[str]:
        pids = forked.read_text().splitlines() if forked.exists() else []
        return pids if len(pids) == n else []

    pids = wait_until(all_of_them, 10, f"{n} children run")
    return [p for pid in pids if (p := procs.look(int(pid)))]


def test_f2_killed_with_a_child_alive(run: Run, front: Make) -> None:
    """F2: a worker is killed whose forked child still holds what it inherited: its client hears within a second, what
    waited is served, nothing is answered twice."""
    f = front()
    f.server.expect_log(DEATH + "signal 9")
    f.server.expect_log(FAILED)
    for i in range(run.times()):
        f.settled()
        with f.load(f"fork{i}", clients=4) as load:
            c = http.Connection(f.port)
            c.send(http.build("GET", f"/fork?id=fork-{i}&seconds=30&gate=never"))
            forked = f.scratch / "forked"
            [child] = children(f, 1)
            [pid] = counted.begun(f.ids)[f"fork-{i}"]
            try:
                load.more(20)
                kill(pid)
                began = time.monotonic()
                assert c.response().status == 502
                took = time.monotonic() - began
                assert child.alive(), "the child has outlived it"
                load.more(50)
                f.settled()
            finally:
                child.kill()
                forked.unlink()
                c.close()
        assert took < 1, f"answered after {took:.2f} s"
        t = counted.tally(load.results, f.ids, [pid], claimed=f.claimed())
        print(t)
        t.clean(running=THREADS)


def test_f2_killed_in_the_middle_of_an_answer(run: Run, front: Make) -> None:
    """F2, F1: the same when the answer has begun: the client sees within a second that it is cut."""
    f = front()
    f.server.expect_log(DEATH + "signal 9")
    f.server.expect_log(FAILED)
    f.settled()
    found: list[procs.Process] = []
    others = []
    with http.Connection(f.port) as c:
        try:
            c.send(http.build("GET", "/midway?id=mid&gate=never"))
            assert c.head().status == 200 and c.read_chunk() == b"first"
            [pid] = counted.begun(f.ids)["mid"]
            # until the child is of the same process
            for n in range(1, 9):
                others.append(http.Connection(f.port))
                others[-1].send(http.build("GET", f"/fork?id=mid-{n}&seconds=30&gate=never"))
                found = children(f, n)
                if counted.begun(f.ids)[f"mid-{n}"] == [pid]:
                    break
            assert found[-1].ppid == pid
            kill(pid)
            began = time.monotonic()
            assert c.read_chunk() is None, "cut, and not ended"
            assert time.monotonic() - began < 1
            assert found[-1].alive()
        finally:
            for p in found:
                p.kill()
            for d in others:
                d.close()


def test_f3_supervisor_killed(run: Run, front: Make) -> None:
    """F3: SIGKILL of the supervisor: workers go on, a new generation takes over, nothing is lost."""
    f = front()
    f.server.expect_log("MWR0301: the supervisor ended with signal 9")
    with f.load("sup") as load:
        for _ in range(run.times(2, 5)):
            load.more(200)
            before = f.settled(60)
            [supervisor] = f.server.helpers("supervise")
            supervisor.kill()
            wait_until(
                lambda s=supervisor: [p for p in f.server.helpers("supervise") if p != s], 30, "a new supervisor"
            )
            load.more(200)
            wait_until(lambda b=before: len(set(_ready(f)) - set(b)) == 2, 60, "a new generation")
        load.more(200)
    t = counted.tally(load.results, f.ids)
    print(t)
    t.clean()


def _ready(f: Hosted) -> list[int]:
    """Workers that serve; none while the supervisor is being replaced."""
    try:
        return f.workers()
    except (AssertionError, StopIteration, subprocess.TimeoutExpired):
        return []


def test_f3_keeper_killed(run: Run, front: Make) -> None:
    """F3: SIGKILL of the keeper: everything goes on; the next reload of the server starts another, without a loss."""
    f = front()
    f.server.allow_log(r"MWR0304: the keeper has gone|MWR0301")
    with f.load("keep") as load:
        for _ in range(run.times(1, 2)):
            load.more(200)
            [keeper] = f.server.helpers("keeper")
            keeper.kill()
            wait_until(lambda k=keeper: not k.alive(), 5)
            load.more(200)
            f.reload()
            wait_until(lambda: len(f.server.helpers("keeper")) == 1, 30, "a keeper")
            wait_until(lambda: len(_ready(f)) == 2, 30, "workers")
            load.more(200)
    t = counted.tally(load.results, f.ids)
    print(t)
    t.clean()


def test_f4_server_process_killed(run: Run, front: Make) -> None:
    """F4: SIGKILL of a process of the server: its rows are free within a second, requests of the others go on."""
    f = front()
    f.server.allow_log(f"{f.server.KILLED}|MWR0421")
    cut = 0
    with f.load("server") as load:
        for i in range(run.times()):
            load.more(100)
            # its rows: one that runs, others that wait for threads
            holders = [http.Connection(f.port) for _ in range(12)]
            for n, c in enumerate(holders):
                c.send(http.build("GET", f"/gate?id=hold-{i}-{n}&gate=gate-{i}"))
            wait_until(lambda i=i: sum(n.startswith(f"hold-{i}-") for n in counted.begun(f.ids)) >= 8, 20)
            own = [c.sock.getsockname()[1] for c in holders]
            victim = max(f.server.server_processes(), key=lambda p: len(procs.clients(p.pid) & set(own)))
            victim.kill()
            began = time.monotonic()
            wait_until(lambda v=victim: not v.alive(), 5)
            (f.scratch / f"gate-{i}").touch()
            load.more(50)
            for n, c in enumerate(holders):
                try:
                    r = c.response()
                    assert r.status == 200 and r.body == counted.payload(f"hold-{i}-{n}", 100)
                except (OSError, http.ProtocolError):
                    cut += 1
                c.close()
            wait_until(
                lambda: sum(w["sent"] for w in f.server.workers()) < 8 and not _old(f),
                max(began + 3 - time.monotonic(), 0.5),
                "the rows of the dead are free",
            )
    assert cut, "the process that was killed had none of the requests: the test shows nothing"
    wait_until(lambda: all((w["sent"], w["running"]) == (0, 0) for w in f.server.workers()), 5, "all rows are free")
    t = counted.tally(load.results, f.ids, cut_off=True)
    print(t)
    t.clean(running=run.times() * 8)


def _old(f: Hosted) -> bool:
    """Whether rows stay in use although nobody asks."""
    return sum(w["sent"] + w["running"] for w in f.server.workers()) > 8
