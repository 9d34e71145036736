"""F6: slow clients by the hundred hold no Python thread, and the others do not notice."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest

from harness import counted
from harness.front import Hosted
from harness.slow import Slow
from harness.wait import wait_until

from .conftest import Run

pytestmark = [pytest.mark.ours, pytest.mark.timeout(600)]
Make = Callable[..., Hosted]
#: what a reader has before it in the kernel's buffers, up to 4 MiB, takes it longer than the servers wait for any progress
PATIENT = {
    "apache": "WSGISpoolLimit 8G\nTimeout 900",
    "nginx": "send_timeout 900s;\nclient_body_timeout 900s;",
}
#: httpd itself spends a thread or process on each slow sender, and prefork on each slow reader
ROOM = {
    "event": "StartServers 8\nServerLimit 8\nThreadLimit 50\nThreadsPerChild 50\nMinSpareThreads 50\n"
    "MaxSpareThreads 400\nMaxRequestWorkers 400\n",
    "prefork": "StartServers {start}\nMinSpareServers 20\nMaxSpareServers 700\nServerLimit 700\nMaxRequestWorkers 700\n",
}


@pytest.mark.parametrize("kind", ["read", "send"])
def test_f6_slow_clients(run: Run, front: Make, kind: str) -> None:
    """F6: 300 (short form: 60) slow readers of 10 MiB, or slow senders, on two processes of five: of the other requests
    none is lost, their p99.9 stays within 100 ms of the undisturbed run (medians of three runs each), no Python thread is
    held; every slow client gets its answer."""
    clients = run.times(60, 300)
    room = {kind: text.replace("{start}", str(clients + 40)) for kind, text in ROOM.items()}
    f = front(room=room, plan={"own": PATIENT})
    calm = _p999(f, run, "calm")
    # so slow a client would take half an hour
    with Slow(f.port, kind, clients, 10) as slow:
        if kind == "read":
            begun = lambda: sum(n.startswith("read-") for n in counted.begun(f.ids))
            wait_until(lambda: begun() == clients, 60, "all have begun")
            wait_until(lambda: _busy(f) == 0, 60, "no thread is held")
        beside = _p999(f, run, "beside")
        assert slow.finish() == []
    print(f"p99.9: {calm * 1e3:.0f} ms undisturbed, {beside * 1e3:.0f} ms beside {clients} slow {kind}ers")
    # a thousand answers have one beyond p99.9: the short form says less
    assert beside < calm + (0.1 if run.long else 0.5)


def _p999(f: Hosted, run: Run, prefix: str) -> float:
    """The median of the p99.9 of some runs of 8 clients, seconds; none of their requests is lost."""
    found = []
    for n in range(run.times(1, 3)):
        with f.load(f"{prefix}{n}") as load:
            load.more(run.times(1000, 3000), 60)
            assert _busy(f) <= 8 + 2, "at most these clients"
        t = counted.tally(load.results, f.ids)
        print(prefix, t)
        t.clean()
        found.append(t.p999)
    return statistics.median(found)


def _busy(f: Hosted) -> int:
    return sum(w["running"] + w["sent"] for w in f.server.workers())
