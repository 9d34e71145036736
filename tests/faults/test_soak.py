"""F15: a million requests of every kind: nothing grows."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
import time
from collections.abc import Callable

import pytest

from harness import counted, http, procs
from harness.front import Hosted
from harness.wait import wait_until

from .conftest import Run

pytestmark = [pytest.mark.ours]
Make = Callable[..., Hosted]


def leaver(port: int, stop: threading.Event) -> None:
    """Asks for something large and goes in the middle, uploads half a body and goes."""
    n = 0
    while not stop.is_set():
        n += 1
        with contextlib.suppress(OSError), http.Connection(port) as c:
            if n % 2:
                c.send(http.build("GET", "/big?id=leaves&size=4"))
                c.sock.recv(20_000)
            else:
                c.send(http.build("POST", "/post?id=leaves", [("Content-Length", "200000")]) + b"x" * 100_000)
        time.sleep(0.02)


def sample(f: Hosted) -> dict[str, int]:
    """Memory (KiB), descriptors and threads of the processes that stay, rows in use, temporary files."""
    found = {"rows": sum(w["sent"] + w["running"] for w in f.server.workers()), "files": 0}
    for p in f.server.processes():
        with contextlib.suppress(OSError, ValueError):
            found["files"] += procs.open_files(p.pid, "/var/tmp/")
    for name in ("keeper", "supervise"):
        [p] = f.server.helpers(name)
        found |= {f"{name} KiB": procs.memory_kib(p.pid, "Pss_Anon"), f"{name} descriptors": procs.descriptors(p.pid)}
    for p in f.server.server_processes():
        with contextlib.suppress(OSError, ValueError):
            found[f"server {p.pid} KiB"] = procs.memory_kib(p.pid, "Pss_Anon")
            found[f"server {p.pid} descriptors"] = procs.descriptors(p.pid)
            found[f"server {p.pid} threads"] = procs.threads(p.pid)
    return found


@pytest.mark.long
@pytest.mark.timeout(5400)
def test_f15_soak(run: Run, front: Make) -> None:
    """F15: MWR_SOAK (1,000,000) requests with uploads, streams, clients that leave and workers that are recycled:
    memory, descriptors and rows of every process are as after the first tenth."""
    total = int(os.environ.get("MWR_SOAK", "1000000"))
    # processes of httpd that stay, so that what grows can be seen
    settings = {
        "event": "StartServers 2\nServerLimit 2\nThreadLimit 32\nThreadsPerChild 32\nMinSpareThreads 1\n"
        "MaxSpareThreads 64\nMaxRequestWorkers 64\n",
        "prefork": "StartServers 16\nMinSpareServers 1\nMaxSpareServers 17\nServerLimit 16\nMaxRequestWorkers 16\n",
    }
    f = front(options="maximum-requests=20000", room=settings)
    f.server.allow_log(r"MWR0430: exception OSError|Traceback|\]  +|OSError: \[Errno 5\]|MWR0421|AH\d{5}")
    stop = threading.Event()
    threads = [threading.Thread(target=leaver, args=(f.port, stop)) for _ in range(2)]
    samples: list[tuple[int, dict[str, int]]] = []
    seen = 0
    tallies = []
    for t in threads:
        t.start()
    try:
        # in parts, so that the results of one do not fill the memory of the tests
        for part in range(20):
            with f.load(f"soak{part}", clients=12, pause=0) as load:
                load.more(total // 20, 1200)
            t = counted.tally(load.results, f.ids)
            t.clean()
            tallies.append(t)
            f.ids.write_bytes(b"")
            seen += t.sent
            samples.append((seen, sample(f)))
            print(seen, {k: v for k, v in samples[-1][1].items() if "server" not in k}, t, flush=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    wait_until(lambda: sample(f)["rows"] == 0, 30, "no row is in use")
    first, last = samples[1][1], samples[-1][1]
    grown = {
        k: (v, last[k])
        for k, v in first.items()
        if k in last and last[k] > v + (2048 if k.endswith("KiB") else 8) + (v // 4 if k.endswith("KiB") else 0)
    }
    assert not grown, grown
    assert last["files"] <= first["files"] + 8
    if os.environ.get("MWR_WRITE_DOCS") and run.kind == "event":
        graph(samples, pathlib.Path(__file__).parents[2] / "docs" / "soak.svg")


def graph(samples: list[tuple[int, dict[str, int]]], path: pathlib.Path) -> None:
    """Memory over requests, one line a process."""
    names = [k for k in samples[0][1] if k.endswith("KiB") and all(k in s for _, s in samples)]
    most = max(s[k] for _, s in samples for k in names) * 1.1
    last = samples[-1][0]
    colours = ["#1b6ac9", "#c9501b", "#2c8a3d", "#8a2c7d", "#777777"]
    lines = []
    for i, k in enumerate(names):
        points = " ".join(f"{60 + 520 * n / last:.0f},{220 - 200 * s[k] / most:.0f}" for n, s in samples)
        label = "process of the server" if k.startswith("server") else k.removesuffix(" KiB")
        colour = colours[i % len(colours)]
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="590" y="{40 + 18 * i}" fill="{colour}">{label}</text>')
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="720" height="260" font-family="sans-serif" font-size="12">'
        '<path d="M60 20V220H580" fill="none" stroke="#888"/>'
        f'<text x="55" y="24" text-anchor="end">{most / 1024:.0f} MiB</text><text x="55" y="224" text-anchor="end">0</text>'
        f'<text x="580" y="240" text-anchor="end">{last:,} requests</text>' + "".join(lines) + "</svg>\n"
    )
