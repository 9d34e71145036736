"""R17: one thread serves many quick requests alone; requests that block must still run side by side."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time

import pytest

from harness.kinds import ROOMY
from harness.plan import Plan
from harness.wait import wait_until

REQUEST = b"GET /exact HTTP/1.1\r\nHost: localhost\r\n\r\n"
THREADS = 5
BLOCK = 0.3


def hammer(port: int, stop: object, count: object, connections: int) -> None:
    """Keep-alive connections, one request after the other on each, until told to stop."""
    socks = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
    while not stop.is_set():  # type: ignore[attr-defined]
        for s in socks:
            s.sendall(REQUEST)
        for s in socks:
            if not s.recv(4096).startswith(b"HTTP/1.1 200"):
                return
        count.value += len(socks)  # type: ignore[attr-defined]
    for s in socks:
        s.close()


@pytest.mark.ours
def test_blocking_requests_beside_quick_ones(serve) -> None:
    """R17: as many requests as there are threads block at once while quick ones saturate the worker."""
    server = serve(Plan(f"processes=1 threads={THREADS}", "conform.wsgi"), room=ROOMY)
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    counts = [context.Value("L", 0, lock=False) for _ in range(2)]
    loads = [context.Process(target=hammer, args=(server.port, stop, c, 8), daemon=True) for c in counts]
    for p in loads:
        p.start()
    try:

        def total() -> int:
            return sum(c.value for c in counts)

        begun = time.monotonic()
        wait_until(lambda: total() > 3000, 30)
        rate = 3000 / (time.monotonic() - begun)
        spans: list[float] = []

        def block() -> None:
            t = time.monotonic()
            assert server.get(f"/slow?{BLOCK}").status == 200
            spans.append(time.monotonic() - t)

        for _ in range(3):
            spans.clear()
            threads = [threading.Thread(target=block) for _ in range(THREADS - 1)]
            before = total()
            for t in threads:
                t.start()
            for t in threads:
                t.join(30)
            # one after the other they would take THREADS - 1 times as long
            assert len(spans) == THREADS - 1 and max(spans) < 2.5 * BLOCK, (spans, rate)
            assert total() > before, "the quick ones stood still meanwhile"
    finally:
        stop.set()
        for p in loads:
            p.join(10)
            p.kill()
    assert all(p.exitcode == 0 for p in loads), "a quick request failed"
