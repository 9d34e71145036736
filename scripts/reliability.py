"""What clients see while workers are replaced: `PYTHONPATH=tests python scripts/reliability.py [rounds]`.

Eight clients, a connection for each request, two workers of five threads, Apache event. For each disturbance: requests,
requests without a whole 200, and percentiles of the latency, beside those of the same load undisturbed. Then how long it
takes from a save to the new code with reload-on-changes.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable

from harness.apache import Apache
from harness.http import fetch
from harness.wait import wait_until

CONFIG = """WSGIDaemonProcess g processes=2 threads=5
WSGIScriptAlias / {apps}/hello.wsgi process-group=g application-group=%{GLOBAL}
"""
HELLO = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""


class Clients:
    def __init__(self, port: int) -> None:
        self.port, self.times, self.bad, self.stop = port, [], [], False
        self.threads = [threading.Thread(target=self.run) for _ in range(8)]
        for t in self.threads:
            t.start()

    def run(self) -> None:
        while not self.stop:
            begun = time.perf_counter()
            try:
                r = fetch(self.port, timeout=15)
                if not (r.status == 200 and r.complete and r.text == "hello"):
                    self.bad.append(r.status)
            except (OSError, AssertionError) as e:
                self.bad.append(repr(e))
            self.times.append(time.perf_counter() - begun)
            time.sleep(0.005)

    def end(self, name: str) -> None:
        self.stop = True
        for t in self.threads:
            t.join()
        ordered = sorted(self.times)
        part = [ordered[min(int(len(ordered) * p), len(ordered) - 1)] * 1e3 for p in (0.5, 0.99, 0.999, 1)]
        figures = " | ".join(f"{ms:.1f}" for ms in part)
        print(f"| {name} | {len(ordered)} | {len(self.bad)} | {figures} |", *self.bad[:3], flush=True)


def measure(name: str, rounds: int, act: Callable[[Apache], None] | None) -> None:
    server = Apache(CONFIG)
    try:
        server.write("hello.wsgi", HELLO)
        server.start()
        wait_until(lambda: len(server.ready()) == 2)
        clients = Clients(server.port)
        for _ in range(rounds):
            time.sleep(0.7)
            if act:
                act(server)
        clients.end(name)
        server.stop()
    finally:
        server.kill_all()
        server.destroy()


def touch(server: Apache) -> None:
    os.utime(server.apps / "hello.wsgi")


def saves(rounds: int) -> None:
    """From a save to the first answer of the new code, with reload-on-changes and a request every 2 ms."""
    server = Apache(CONFIG.replace("processes=2 threads=5", "threads=5 reload-on-changes=on"))
    times = []
    try:
        server.write("hello.wsgi", HELLO)
        server.start()
        wait_until(lambda: fetch(server.port).text == "hello")
        for n in range(rounds):
            wait_until(lambda: [w["state"] for w in server.workers()] == ["ready"])
            text = f"h{n:04}"
            begun = time.perf_counter()
            server.write("hello.wsgi", HELLO.replace('b"hello"', f'b"{text}"'))
            wait_until(lambda text=text: fetch(server.port).text == text, interval=0.002)
            times.append((time.perf_counter() - begun) * 1e3)
        server.stop()
    finally:
        server.kill_all()
        server.destroy()
    print(f"{rounds} saves: median {statistics.median(times):.0f} ms, worst {max(times):.0f} ms")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    print("| disturbance | requests | lost | p50 ms | p99 ms | p99.9 ms | worst ms |\n|---|---|---|---|---|---|---|")
    measure("none", rounds, None)
    measure(f"{rounds} graceful restarts", rounds, lambda s: s.graceful())
    measure(f"{rounds} touches of the script", rounds, touch)
    measure(f"{rounds} `ctl reload`", rounds, lambda s: s.ctl("reload", "g"))
    saves(rounds)


main()
