"""F15: a million requests of every kind: nothing grows. `scripts/soak.py` runs it and draws docs/soak.svg."""

from __future__ import annotations

import contextlib
import json
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
    workers = f.server.workers()
    found = {"rows": sum(w["sent"] + w["running"] for w in workers), "files": 0}
    # they are recycled all the time: the largest of those that are there
    memory, descriptors = [0], [0]
    for w in workers:
        with contextlib.suppress(OSError, ValueError):
            memory.append(procs.memory_kib(w["pid"], "Pss_Anon"))
            descriptors.append(procs.descriptors(w["pid"]))
    found |= {"largest worker KiB": max(memory), "largest worker descriptors": max(descriptors)}
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
            print(seen, samples[-1][1], t, flush=True)
            if keep := os.environ.get("MWR_SOAK_SAMPLES"):
                # whole each time: a run that is cut off has its samples too
                pathlib.Path(f"{keep}.{run.kind}").write_text(json.dumps(samples))
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
