"""Many clients at once: nothing is mixed up, lost or starved."""

from __future__ import annotations

import hashlib
import json
import os
import threading

from harness import http, product
from harness.site import Site
from harness.wait import wait_until


def run_clients(n: int, work) -> None:
    """Runs `work(i)` in n threads; the first exception is raised here."""
    errors: list[BaseException] = []

    def body(i: int) -> None:
        try:
            work(i)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=body, args=(i,)) for i in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if errors:
        raise errors[0]


def test_echo_of_unique_bodies(server: Site) -> None:
    """R26: 32 clients x 200 requests with bodies of their own: each gets its own back."""

    def work(i: int) -> None:
        with http.Connection(server.port) as c:
            for k in range(200):
                body = hashlib.sha256(f"{i}/{k}".encode()).hexdigest().encode() * (1 + (k % 50 == 0) * 1500)
                r = c.request("POST", "/echo", body=body)
                assert r.status == 200 and r.body == body, (i, k, r.status)

    run_clients(32, work)


def test_mixed_requests(server: Site) -> None:
    """R26: streams, files, errors-free forms and large answers side by side on 16 connections."""
    pattern = bytes(range(256)) * 256

    def work(i: int) -> None:
        with http.Connection(server.port) as c:
            for k in range(15):
                tag = f"{i}-{k}"
                assert c.request(target=f"/exact?{tag}").text == f"exact:{tag}"
                assert c.request(target="/as-generator").body == b"g1,g2"
                assert c.request(target="/large?3").body == pattern * 3
                assert c.request(target="/file-wrapper?whole:70000").body == (pattern * 2)[:70000]
                data = os.urandom(80000)
                assert c.request("POST", "/digest", body=data).text == f"80000 {hashlib.sha256(data).hexdigest()}"

    run_clients(16, work)


def test_thread_locals_survive(server: Site) -> None:
    """R17: the same threads serve request after request, so thread-locals keep their values."""
    if not product.is_ours():
        return
    seen: dict[str, list[int]] = {}
    with server.connect() as c:
        for _ in range(200):
            who, count = c.request(target="/thread-local").text.split()
            seen.setdefault(who, []).append(int(count))
    assert len(seen) <= 16, "2 processes of 8 threads"
    for who, counts in seen.items():
        assert counts == sorted(set(counts)) and counts[-1] - counts[0] == len(counts) - 1, (who, counts)


def test_waiting_requests_beside_a_busy_path(server: Site) -> None:
    """R17: a request of 20 waits of 0.2 ms beside a saturated hello path takes at most 10 x its idle time."""
    with server.connect() as c:
        idle = sorted(float(c.request(target="/waits").text) for _ in range(15))[7]
    stop = threading.Event()
    counted = [0]

    def load(_: int) -> None:
        with http.Connection(server.port) as c:
            while not stop.is_set():
                assert c.request(target="/exact?load").status == 200
                counted[0] += 1

    threads = [threading.Thread(target=load, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    try:
        wait_until(lambda: counted[0] > 100, 20, "load on the server")
        with server.connect() as c:
            busy = sorted(float(c.request(target="/waits").text) for _ in range(15))[7]
    finally:
        stop.set()
        for t in threads:
            t.join()
    assert busy <= 10 * idle, f"{busy * 1000:.1f} ms beside load, {idle * 1000:.1f} ms idle"


def test_both_processes_serve(server: Site) -> None:
    """R10: with requests under way in one process the other serves."""

    def spread() -> bool:
        found: list[tuple[int, str]] = []

        def work(_: int) -> None:
            r = server.get("/slow?0.2")
            found.append((r.status, r.text))

        run_clients(12, work)
        assert {status for status, _ in found} == {200}
        return len({pid for _, pid in found}) == 2

    # a worker that was late once, as under the load of the tests before, is passed over for a second
    wait_until(spread, 10, "requests in both processes")


def test_clients_that_leave(server: Site) -> None:
    """DESIGN 4.7: clients that hang up in the middle of an answer disturb nobody."""
    server.allow_log(server.CLIENT_FAULTS)

    def work(i: int) -> None:
        for k in range(10):
            c = http.Connection(server.port)
            c.send(http.build(target="/large?50"))
            if k % 2:
                c.head()
            c.close()

    run_clients(8, work)
    r = json.loads(server.get("/process").body)
    assert r["pid"]


def test_multiprocessing(server: Site) -> None:
    """R18: multiprocessing works inside an application, with each start method."""
    if not product.is_ours():
        return
    server.allow_log(r"DeprecationWarning|fork\(\)|os\.fork")
    for method in ("fork", "spawn", "forkserver"):
        r = server.get(f"/forks?{method}", timeout=60)
        assert (r.status, r.text) == (200, "[1, 2, 3]"), method
