"""The readiness URL (D10): what a load balancer is told, on each kind of server. Liveness is `ctl live`, see tests/docker."""

from __future__ import annotations

import threading

import pytest

from harness.plan import Plan
from harness.server import Server
from harness.wait import wait_until

pytestmark = [pytest.mark.ours, pytest.mark.everywhere]
URL = "/-/mod-wsgi-rs/ready"
OWN = {
    "apache": f'<LocationMatch "^{URL}$">\nSetHandler wsgi-ready\nRequire all granted\n</LocationMatch>\n',
    "nginx server": f"location = {URL} {{ wsgi_ready; }}\n",
}


def server(serve, options: str, **plan) -> Server:
    return serve(Plan(options, own=OWN, **plan))


def ready(one: Server) -> bool:
    r = one.get(URL)
    assert r.status in (200, 503), r
    assert r.header("Cache-Control") == "no-store"
    if r.status == 200:
        assert r.body == b"ready\n" and r.header("Content-Type").startswith("text/plain")
    else:
        # Who asks learns nothing of how the site is made.
        assert r.header("Retry-After") == "1" and b"group" not in r.body
    return r.status == 200


def test_loaded_application(serve) -> None:
    """D10: 200 once the application is loaded; no request of it is counted, and the application hears of none."""
    one = server(serve, "processes=1 threads=2 maximum-requests=3")
    wait_until(lambda: ready(one), 20, "the server says that it is ready")
    before = one.ready()
    for _ in range(20):
        assert ready(one)
    (worker,) = one.workers()
    assert worker["requests"] == 0 and one.ready() == before
    # Nor does asking start workers that nobody needs.
    assert [p["group"] for p in one.pools() if p["workers"]] == ["g"]
    assert one.get(URL, method="HEAD").status == 200
    assert one.get(URL + "/more").text.endswith("more")


def test_application_that_cannot_be_loaded(serve) -> None:
    """D10: an application that is not loaded is not ready; once it is mended it is, by itself."""
    one = serve(Plan("processes=1 threads=2", root="{scratch}/app.wsgi", own=OWN), start=False)
    script = one.scratch / "app.wsgi"
    script.write_text("raise RuntimeError('not yet')\n")
    one.log.allow(r"MWR0433|RuntimeError|Traceback|  File |    raise ")
    one.start()
    wait_until(one.ready, 20, "a worker has tried to load it")
    for _ in range(5):
        assert not ready(one)
    script.write_text("def application(environ, start):\n    start('200 OK', [])\n    return [b'mended']\n")
    wait_until(lambda: one.get("/").text == "mended", 20, "it answers")
    wait_until(lambda: ready(one), 20, "the server says so")


def test_full_queue(serve) -> None:
    """D10: with a full queue it is not ready, and is again when there is room."""
    one = server(serve, "processes=1 threads=1 queue-limit=1")
    wait_until(lambda: ready(one), 20, "the server says that it is ready")
    busy = [threading.Thread(target=lambda: one.get("/wait?go", timeout=30), daemon=True) for _ in range(2)]
    for t in busy:
        t.start()
    wait_until(lambda: not ready(one), 10, "the queue is full")
    (one.scratch / "go").touch()
    for t in busy:
        t.join(20)
    wait_until(lambda: ready(one), 10, "there is room again")


def test_workers_that_cannot_start(serve) -> None:
    """D10: without a worker it is not ready; when one has started it is."""
    one = serve(Plan("processes=1 threads=1 startup-timeout=60", root="{scratch}/app.wsgi", own=OWN), start=False)
    (one.scratch / "app.wsgi").write_text(
        "import os, time\n"
        f"while not os.path.exists({str(one.scratch / 'go')!r}):\n    time.sleep(0.01)\n"
        "def application(environ, start):\n    start('200 OK', [])\n    return [b'up']\n"
    )
    one.start()
    for _ in range(5):
        assert not ready(one)
    (one.scratch / "go").touch()
    wait_until(lambda: ready(one), 20, "the worker is ready")


def test_told_not_to_be(serve) -> None:
    """D10: `ctl readiness off` turns load balancers away while requests are served all the same; a restart of the server and a
    new supervisor leave that as it is, `on` ends it."""
    one = server(serve, "processes=1 threads=2")
    wait_until(lambda: ready(one), 20, "the server says that it is ready")
    one.ctl("readiness", "off")
    wait_until(lambda: not ready(one), 10, "it has been told")
    assert one.get("/").status == 200
    assert "not ready for load balancers, by order" in one.ctl("status")
    before = one.ready()
    # More threads: the group gets a new table.
    one.plan(Plan("processes=1 threads=3", own=OWN))
    one.write_config()
    one.graceful()
    wait_until(lambda: one.ready() and not one.ready() & before, 20, "new workers")
    assert not ready(one) and one.get("/").status == 200
    one.expect_log("MWR0301")
    (old,) = one.helpers("supervise")
    old.kill()
    one.log.wait("a new supervisor has taken over")
    assert not ready(one) and one.get("/").status == 200
    one.ctl("readiness", "on")
    wait_until(lambda: ready(one), 20, "it is ready again")
    assert "by order" not in one.ctl("status")
