"""F9: clients that leave at every point, with and without a reset: nothing of them stays behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from harness import counted, http, procs
from harness.front import Hosted
from harness.wait import wait_until

from .conftest import Run

pytestmark = [pytest.mark.ours, pytest.mark.timeout(900)]
Make = Callable[..., Hosted]
CLIENTS = 8
#: processes of httpd that stay, so that what grows can be seen
STEADY = {
    "event": "StartServers 2\nServerLimit 2\nThreadLimit 32\nThreadsPerChild 32\nMinSpareThreads 1\n"
    "MaxSpareThreads 64\nMaxRequestWorkers 64\n",
    "prefork": "StartServers 48\nMinSpareServers 1\nMaxSpareServers 49\nServerLimit 48\nMaxRequestWorkers 48\n",
}
POINTS = ("in the head", "before the body", "in the body", "before the answer", "in the answer", "not at all")


class Leaver:
    """One client after the other; each request has a number of its own."""

    def __init__(self, port: int, seed: int, prefix: str, total: int):
        self.port, self.rng, self.prefix, self.total = port, random.Random(seed), prefix, total
        self.went: list[tuple[str, str, bool]] = []
        self.failure = ""

    def run(self) -> None:
        for n in range(self.total):
            name = f"{self.prefix}-{n}"
            where = self.rng.choice(["", "/streamed"])
            point = self.rng.choice(POINTS)
            self.went.append((name, point, bool(where)))
            try:
                with http.Connection(self.port, timeout=60) as c:
                    self.one(c, name, where, point)
                    if self.rng.random() < 0.3:
                        c.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: a reset instead of an orderly end
            except (OSError, AssertionError, http.ProtocolError) as e:
                self.failure = f"{name} {point}: {e!r}"
                return

    def one(self, c: http.Connection, name: str, where: str, point: str) -> None:
        size = self.rng.choice([10, 5000, 100_000])
        body, fields = b"z" * size, [("Content-Length", str(size))]
        if self.rng.random() < 0.5:
            body, fields = http.chunked(body), [("Transfer-Encoding", "chunked")]
        post = http.build("POST", f"{where}/post?id={name}", fields)
        if point == "in the head":
            c.send(post[: self.rng.randrange(1, len(post) - 1)])
        elif point == "before the body":
            c.send(post)
        elif point == "in the body":
            # how much of the last chunk must be missing: its end
            c.send(post + body[: self.rng.randrange(1, len(body) - 7 if "chunked" in fields[0] else len(body))])
        elif point == "before the answer":
            c.send(
                post + body if self.rng.random() < 0.5 else http.build("GET", f"{where}/slow?id={name}&seconds=0.02")
            )
        elif point == "in the answer":
            c.send(http.build("GET", f"{where}/big?id={name}&size=1"))
            assert c.sock.recv(self.rng.choice([1, 500, 5000]))
        else:
            r = c.request("GET", f"{where}/stream?id={name}&size=30000")
            assert r.status == 200 and r.complete and r.body == counted.payload(name, 30000)


def storm(f: Hosted, prefix: str, total: int) -> None:
    """So many clients; what ran, ran once."""
    seed = random.randrange(1 << 30)
    leavers = [Leaver(f.port, seed + n, f"{prefix}-{n}", total // CLIENTS) for n in range(CLIENTS)]
    threads = [threading.Thread(target=leaver.run) for leaver in leavers]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not [leaver.failure for leaver in leavers if leaver.failure], f"seed {seed}"
    went = [one for leaver in leavers for one in leaver.went]
    assert len(went) == total and min(sum(p == point for _, p, _ in went) for point in POINTS) > total // 10
    # what still runs ends by itself
    wait_until(lambda: all((w["sent"], w["running"]) == (0, 0) for w in f.server.workers()), 30, "no row is in use")
    begun = counted.begun(f.ids)
    assert not [n for n, pids in begun.items() if len(pids) > 1], "served twice"
    never = {n for n, point, streamed in went if point == "in the head" or (point == "in the body" and not streamed)}
    assert not never & set(begun), "a request that was not whole has run"
    assert {n for n, point, _ in went if point == "not at all"} <= set(begun)


def resources(f: Hosted) -> dict[str, int]:
    """Descriptors, threads, memory (KiB) and temporary files of the processes that stay."""
    found = {}
    groups = {
        "workers": f.workers(),
        "server": [p.pid for p in f.server.server_processes()],
        "supervisor": [p.pid for p in f.server.helpers("supervise")],
    }
    for name, pids in groups.items():
        found[f"{name}: descriptors"] = sum(procs.descriptors(pid) for pid in pids)
        found[f"{name}: threads"] = sum(procs.threads(pid) for pid in pids)
        found[f"{name}: KiB"] = sum(procs.memory_kib(pid, "Pss_Anon") for pid in pids)
    places = ("/var/tmp/", str(f.server.prefix / "tmp-"))
    pids = [*groups["workers"], *groups["server"]]
    found["files"] = sum(procs.open_files(pid, place) for pid in pids for place in places)
    return found


def test_f9_leaving_at_every_point(run: Run, front: Make) -> None:
    """F9: 10,000 clients (short form: 800) leave at random points, of buffered and of streamed requests: no row, no
    descriptor, no temporary file, no thread and no memory stays, nothing runs twice, nothing runs that was not whole."""
    total = run.times(800, 10_000)
    f = front(room=STEADY, plan={"places": {"/streamed": {"request_buffering": "off"}}})
    f.server.allow_log(r"MWR0430: exception OSError|Traceback|\]  +|OSError: \[Errno 5\]|MWR0421|AH\d{5}")
    workers = f.settled()
    storm(f, "warm", max(total // 10, 800))
    before = resources(f)
    storm(f, "storm", total)
    assert f.workers() == workers, "no worker has ended"
    allowed = {"descriptors": 24, "threads": 0, "KiB": 6000}

    def grown() -> dict[str, tuple[int, int]]:
        now = resources(f)
        return {k: (v, now[k]) for k, v in before.items() if now[k] > v + allowed.get(k.split(": ")[-1], 0)}

    print(before, resources(f), sep="\n")
    wait_until(lambda: not grown(), 20, f"all is as before: {grown()}")
    assert f.get("/post?id=after", method="POST", body=b"abc").body.startswith(b"3 ")
