"""F6: slow clients by the hundred hold no Python thread, and the others do not notice."""

from __future__ import annotations

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
    """F6: 300 (short form: 60) slow readers of 10 MiB, or slow senders, on two processes of five: of the other requests none is lost, their
    p99.9 stays within 100 ms of the undisturbed run, no Python thread is held; every slow client gets its answer."""
    clients = run.times(60, 300)
    room = {kind: text.replace("{start}", str(clients + 40)) for kind, text in ROOM.items()}
    f = front(room=room, plan={"own": PATIENT})
    with f.load("calm") as load:
        load.more(run.times(1000, 3000), 60)
    calm = counted.tally(load.results, f.ids)
    calm.clean()
    # so slow a client would take half an hour
    with Slow(f.port, kind, clients, 10) as slow:
        if kind == "read":
            begun = lambda: sum(n.startswith("read-") for n in counted.begun(f.ids))
            wait_until(lambda: begun() == clients, 60, "all have begun")
            wait_until(lambda: _busy(f) == 0, 60, "no thread is held")
        with f.load("slow") as load:
            load.more(run.times(1000, 3000), 60)
            assert _busy(f) <= 8 + 2, "at most the other clients"
        assert slow.finish() == []
    t = counted.tally(load.results, f.ids)
    print(calm, t, sep="\n")
    t.clean()
    # a thousand answers have one beyond p99.9: the short form says less
    assert t.p999 < calm.p999 + (0.1 if run.long else 0.5)


def _busy(f: Hosted) -> int:
    return sum(w["running"] + w["sent"] for w in f.server.workers())
