"""`mod-wsgi-rs ctl` (L7), reload (L5): what it prints, what it does, and that nothing is lost meanwhile."""

from __future__ import annotations

import json
import threading
import time

import pytest

from harness.load import Load
from harness.plan import Plan
from harness.server import Server
from harness.wait import wait_until

pytestmark = pytest.mark.ours


def server(serve, options: str = "", processes: int = 2, **plan) -> Server:
    one = serve(Plan(f"processes={processes} threads=3 {options}", **plan))
    wait_until(lambda: len(one.ready()) == processes, what="workers are ready")
    return one


def test_status(serve) -> None:
    """L7: people see groups, workers, their memory and ages, and what runs; JSON has the same."""
    one = server(serve)
    thread = threading.Thread(target=lambda: one.get("/wait?release"), daemon=True)
    thread.start()
    wait_until(lambda: "GET /wait?release" in one.ctl("status"))
    text = one.ctl("status")
    assert "group g, application group %{GLOBAL}: active, 2 of 2 workers, 3 threads each" in text
    assert " application: GET /wait?release" in text
    (busy,) = [w for w in one.workers() if w["under_way"]]
    assert busy["under_way"][0]["phase"] == "application" and busy["under_way"][0]["seconds"] < 60
    assert 5 << 20 < busy["rss"] < 1 << 30 and busy["age"] > 0 and busy["running"] == 1
    (one.scratch / "release").touch()
    thread.join(10)
    wait_until(lambda: not any(w["under_way"] for w in one.workers()))
    assert "secret" not in json.dumps(one.pools()) and "token" not in json.dumps(one.pools())


@pytest.mark.everywhere
def test_reload(serve) -> None:
    """L5, L7: `ctl reload` returns when all workers are new; under load no request is lost."""
    one = server(serve)
    with Load(one.port, clients=6) as load:
        load.more(100)
        for _ in range(5):
            before = one.ready()
            one.ctl("reload", "g")
            assert len(one.ready()) == 2 and not one.ready() & before
            load.more(50)
    assert not load.bad, load.bad[:5]


def test_restart(serve) -> None:
    """L7: `ctl restart` ends all workers at once; requests that run are finished, others wait for the new ones."""
    one = server(serve)
    before = one.ready()
    with Load(one.port, "/sleep?0.05", clients=4) as load:
        load.more(10)
        one.ctl("restart")
        assert len(one.ready()) == 2 and not one.ready() & before
        load.more(10)
    assert not load.bad, load.bad[:5]


def test_a_broken_reload_is_told(serve) -> None:
    """L5: the order fails with the traceback, the old code goes on; at the next good edit it is reloaded."""
    one = server(serve)
    one.expect_log("MWR0308")
    one.log.allow("MWR0433|Traceback|  File |RuntimeError|    ")
    before = one.ready()
    good = (one.apps / "life.wsgi").read_text()
    one.write("life.wsgi", "raise RuntimeError('deliberate')\n")
    said = one.ctl("reload", "g", ok=False)
    assert "MWR0618" in said and "RuntimeError: deliberate" in said
    assert one.ready() == before and one.get("/").status == 200
    assert "cannot be loaded, the old goes on: RuntimeError: deliberate" in one.ctl("status")
    assert len(one.log.find("RuntimeError: deliberate")) <= 2
    one.write("life.wsgi", good)
    one.ctl("reload", "g")
    assert not one.ready() & before
    assert "cannot be loaded" not in one.ctl("status")


def test_scale(serve) -> None:
    """L7: more and fewer workers under load; 0 is as configured."""
    one = server(serve)
    with Load(one.port, "/sleep?0.01", clients=4) as load:
        one.ctl("scale", "g", "4")
        wait_until(lambda: len(one.ready()) == 4)
        load.more(50)
        one.ctl("scale", "g", "1")
        wait_until(lambda: len(one.ready()) == 1)
        load.more(20)
        one.ctl("scale", "g", "0")
        wait_until(lambda: len(one.ready()) == 2)
    assert not load.bad, load.bad[:5]
    assert "at most" in one.ctl("scale", "g", "400", ok=False)
    assert "no daemon process group" in one.ctl("scale", "other", "1", ok=False)


def scaled(one: Server) -> list[tuple[int, int | None]]:
    """How many workers the group's pools want, and how many were ordered."""
    return [(p["target"], p["scaled"]) for p in one.pools() if p["group"] == "g"]


@pytest.mark.everywhere
def test_a_restart_ends_a_scale(serve) -> None:
    """L7: fewer or more, a restart of the server brings the configured number back."""
    one = server(serve)
    for number in (1, 3):
        one.ctl("scale", "g", str(number))
        wait_until(lambda number=number: len(one.ready()) == number)
        assert scaled(one) == [(number, number)]
        one.graceful()
        wait_until(lambda: len(one.ready()) == 2, 15, "as configured")
        assert scaled(one) == [(2, None)]


def test_a_scale_ends_where_a_former_table_serves_on(serve) -> None:
    """L7: also a restart back to the threads of before ends it, while the workers with other threads have not started yet."""
    one = server(serve)
    one.ctl("scale", "g", "1")
    wait_until(lambda: len(one.ready()) == 1)
    waits = f"import os, time\nwhile not os.path.exists({str(one.scratch / 'go')!r}):\n    time.sleep(0.01)\n"
    one.write("life.wsgi", waits + (one.apps / "life.wsgi").read_text())
    for threads in (4, 3):
        one.plan(Plan(f"processes=2 threads={threads}"))
        one.write_config()
        one.graceful()
        wait_until(lambda threads=threads: threads in [p["threads"] for p in one.pools() if p["group"] == "g"])
    (one.scratch / "go").touch()
    wait_until(lambda: scaled(one) == [(2, None)] and len(one.ready()) == 2, 15, "as configured")


def test_a_scale_outlives_the_supervisor(serve) -> None:
    """L7, L9: a supervisor that takes over knows the number and that it was an order: load does not change it, a restart
    of the server does."""
    one = server(serve)
    one.ctl("scale", "g", "1")
    wait_until(lambda: len(one.ready()) == 1)
    one.expect_log("MWR0301")
    (old,) = one.helpers("supervise")
    old.kill()
    one.log.wait("a new supervisor has taken over")
    assert scaled(one) == [(1, 1)]
    one.graceful()
    wait_until(lambda: len(one.ready()) == 2, 15, "as configured")
    assert scaled(one) == [(2, None)]


def test_stacks(serve) -> None:
    """L7: where each thread is, also of a worker that is busy; the log has it too."""
    one = server(serve, processes=1)
    one.log.allow(r"  File |Thread 0x|Current thread|<no Python frame>|^$|most recent call")
    threading.Thread(target=lambda: one.get("/wait?release"), daemon=True).start()
    wait_until(lambda: any(w["under_way"] for w in one.workers()))
    text = one.ctl("stacks", "g")
    assert 'request "GET /wait?release": application' in text
    assert "in wait_for" in text and "life.wsgi" in text
    one.log.wait("in wait_for")
    (one.scratch / "release").touch()


def test_log_level(serve) -> None:
    """L7: output below the level is left out, until the next configuration."""
    one = server(serve, processes=1, settings={"reload_on_restart": "on"})
    one.ctl("log-level", "error")
    (before,) = one.ready()
    one.ctl("reload")
    assert not one.log.find(rf"worker {before} of .* has ended")
    one.graceful()
    one.log.wait(r"worker \d+ of .* is ready", count=2)


def test_only_the_owner_may_command(serve) -> None:
    """L7: an application that runs as the server's user may look, not command."""
    one = server(serve, processes=1)
    directory = next(one.run.glob("**/ctl.sock")).parent
    one.write("life.wsgi", COMMANDER.replace("{ctl}", str(directory / "ctl.sock")))
    one.get("/")
    one.expect_log("MWR0312.*may not command")
    answer = wait_until(lambda: (t := one.get("/").text) and '"op"' in t and t)
    assert '"refused"' in answer and '"reason":"protocol"' in answer


COMMANDER = """
import socket, struct
def application(environ, start_response):
    s = socket.socket(socket.AF_UNIX)
    s.connect("{ctl}")
    data = b'{"op":"command","command":{"do":"restart","group":null}}'
    s.sendall(struct.pack("<I", len(data)) + data)
    body = s.recv(4096)[4:]
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_strict_reloading(serve, processes: int) -> None:
    """L5: script-reloading=strict: the request that finds a changed script, and all after it, get the new code."""
    one = server(serve, "script-reloading=strict", processes)
    script = "import time\ntime.sleep(0.5)\n" + VERSION
    for i in range(3):
        one.write("life.wsgi", script.replace("%d", str(i)))
        answers = {one.get("/").text for _ in range(10)}
        assert answers == {f"version {i}"}
    with Load(one.port, clients=4) as load:
        load.more(50)
        one.write("life.wsgi", script.replace("%d", "9"))
        first = len(load.results)
        wait_until(lambda: load.results[-1].text == "version 9", 10)
        load.more(50)
    assert not load.bad, load.bad[:5]
    texts = [r.text for r in load.results]
    changed = texts.index("version 9")
    # what was under way at the moment of the change may still have been answered by the old code
    assert changed - first < 200 and set(texts[changed + 8 :]) == {"version 9"}


def test_strict_reloading_of_broken_code(serve) -> None:
    """L5: strict: when the new code cannot be loaded, waiting requests are served by the old, later ones at once."""
    one = server(serve, "script-reloading=strict startup-timeout=20")
    one.expect_log("MWR0308")
    one.log.allow("MWR0433|Traceback|  File |RuntimeError|    ")
    one.write("life.wsgi", "raise RuntimeError('deliberate')\n")
    for _ in range(10):
        assert one.get("/", timeout=10).status == 200
    one.write("life.wsgi", VERSION.replace("%d", "5"))
    assert {one.get("/").text for _ in range(5)} == {"version 5"}


VERSION = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "9")])
    return [b"version %d"]
"""


def test_processes_follow_the_load(serve) -> None:
    """L13: MIN workers in peace, up to MAX while requests wait, one more each time they have waited for 100 ms; `ctl scale`
    overrides."""
    one = serve(Plan("processes=1..3 threads=2"))
    wait_until(lambda: len(one.ready()) == 1)
    with Load(one.port, "/sleep?0.05", clients=1) as load:
        load.more(20)
        assert len(one.ready()) == 1, "one request at a time needs one worker"
    with Load(one.port, "/sleep?0.1", clients=10) as load:
        wait_until(lambda: len(one.ready()) == 3, 10)
        load.more(50)
        assert len(one.ready()) == 3
        one.ctl("scale", "g", "2")
        wait_until(lambda: len(one.ready()) == 2, 10)
        load.more(50)
        assert len(one.ready()) == 2
        one.ctl("scale", "g", "0")
        wait_until(lambda: len(one.ready()) == 3, 10)
        took = []
        for _ in range(3):
            one.ctl("scale", "g", "1")
            wait_until(lambda: len(one.ready()) == 1, 10)
            began = time.monotonic()
            one.ctl("scale", "g", "0")
            wait_until(lambda: scaled(one) == [(3, None)], 10)
            took.append(time.monotonic() - began)
        # Two more, each after two looks at least: with a look a second it would be more than two seconds.
        assert min(took) < 1.5, took
    assert not load.bad, load.bad[:5]


@pytest.mark.long
def test_processes_shrink(serve) -> None:
    """L13: when the load has gone for a while, so do the workers, one after the other."""
    one = serve(Plan("processes=1..3 threads=2"))
    with Load(one.port, "/sleep?0.1", clients=10):
        wait_until(lambda: len(one.ready()) == 3, 15)
    wait_until(lambda: len(one.ready()) == 2, 70)
    wait_until(lambda: len(one.ready()) == 1, 70)
