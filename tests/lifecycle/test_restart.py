"""Restarts and touched scripts: new code is served, nothing is lost, nothing grows."""

from __future__ import annotations

import os
import signal
import statistics

import pytest

from harness import http, procs
from harness.inspect import look
from harness.load import Load
from harness.plan import Plan, Script
from harness.server import Server
from harness.wait import wait_until

GROUP = "processes=2 threads=4"
#: what is httpd's default: a restart of the server brings the code of the moment
ROLL = {"reload_on_restart": "on"}
VERSIONED = """
import library
def application(environ, start_response):
    body = ("%s " + library.VALUE).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def deploy(server: Server, version: str, library: str = "lib") -> None:
    server.write("lib/library.py", f"VALUE = {library!r}\n")
    server.write("versioned.wsgi", VERSIONED.replace("%s", version))


def settled(server: Server, text: str) -> None:
    """Waits until every worker serves this: groups are rolled one worker after the other."""
    wait_until(lambda: {server.get().text for _ in range(20)} == {text}, 20, f"all serve {text!r}")


def versioned(serve, options: str = GROUP, settings: dict[str, str] | None = None) -> Server:
    plan = Plan(f"{options} python-path={{apps}}/lib", "versioned.wsgi", settings=ROLL | (settings or {}))
    server = serve(plan, start=False)
    deploy(server, "v1", "l1")
    return server.start()


@pytest.mark.everywhere
def test_graceful_loads_new_code(serve) -> None:
    """R19, pitfall H7: after `apachectl graceful` edited modules, not only the script, are served new."""
    server = versioned(serve)
    assert server.get().text == "v1 l1"
    server.write("lib/library.py", "VALUE = 'l2'\n")
    server.graceful()
    settled(server, "v1 l2")


@pytest.mark.ours
@pytest.mark.everywhere
def test_graceful_under_load(serve) -> None:
    """R19, DESIGN 1.3: 8 clients, 8 graceful restarts: no request lost; each restart brings its code."""
    server = versioned(serve)
    server.get()
    with Load(server.port, clients=8) as load:
        load.more(200)
        for i in range(8):
            deploy(server, f"r{i}", f"l{i}")
            server.graceful()
            wait_until(lambda i=i: load.results[-1].text == f"r{i} l{i}", 30, f"code r{i} is served")
            load.more(100)
    assert not load.bad, f"{len(load.bad)} of {len(load.results)}: {load.bad[:5]}"


@pytest.mark.ours
def test_new_before_old(serve) -> None:
    """R19: the new workers are ready before the old ones stop taking requests: no gap, however slow the import."""
    server = versioned(serve)
    server.get()
    with Load(server.port, clients=4) as load:
        load.more(100)
        server.write("lib/library.py", "import time\ntime.sleep(1.5)\nVALUE = 'slow import'\n")
        server.graceful()
        wait_until(lambda: load.results[-1].text == "v1 slow import", 30, "new code")
        load.more(100)
    assert not load.bad
    # while the new worker imported, the old code answered
    texts = [r.text for r in load.results]
    assert texts.index("v1 slow import") > 200


@pytest.mark.ours
def test_long_request_survives_graceful(serve) -> None:
    """R19: a request that runs while its worker is replaced is finished by the old one."""
    server = serve(Plan(GROUP, "conform.wsgi", settings=ROLL))
    with server.connect() as c:
        c.send(http.build(target="/gated?long"))
        assert c.head().status == 200
        assert c.read_chunk() == b"before"
        server.graceful()
        wait_until(lambda: server.get("/exact?x").status == 200, 10)
        (server.scratch / "long").touch()
        assert c.read_chunk() == b"after"
        assert c.read_chunk() == b""


@pytest.mark.ours
def test_broken_code_leaves_the_old_serving(serve) -> None:
    """DESIGN 8: when the new code cannot load, the old workers stay and the error is logged once."""
    server = versioned(serve)
    assert server.get().text == "v1 l1"
    server.expect_log("deliberate-broken")
    server.log.allow(r"MWR0[34]\d\d|Traceback|File |Error|  \S")
    server.write("lib/library.py", "raise RuntimeError('deliberate-broken')\n")
    server.graceful()
    server.log.wait("deliberate-broken", 20)
    assert {server.get().text for _ in range(20)} == {"v1 l1"}
    server.write("lib/library.py", "VALUE = 'mended'\n")
    server.graceful()
    wait_until(lambda: server.get().text == "v1 mended", 20, "the mended code")


@pytest.mark.ours
def test_touched_script(serve) -> None:
    """R10, R19: WSGIScriptReloading On: a changed script is served after the roll, nothing lost."""
    server = versioned(serve)
    server.get()
    with Load(server.port, clients=4) as load:
        load.more(50)
        for i in range(3):
            server.write("versioned.wsgi", VERSIONED.replace("%s", f"touched{i}"))
            wait_until(lambda i=i: load.results[-1].text.startswith(f"touched{i}"), 20, "touched code is served")
    assert not load.bad, load.bad[:5]
    settled(server, "touched2 l1")


@pytest.mark.ours
def test_reloading_off(serve) -> None:
    """R10: WSGIScriptReloading Off: a changed script waits for a restart."""
    server = versioned(serve, "processes=1 threads=4", {"script_reloading": "off"})
    assert server.get().text == "v1 l1"
    before = {p.pid for p in server.processes()}
    server.write("versioned.wsgi", VERSIONED.replace("%s", "v2"))
    with server.connect() as c:
        assert {c.request().text for _ in range(300)} == {"v1 l1"}
    assert {p.pid for p in server.processes()} >= before - {p.pid for p in server.server_processes()}
    server.graceful()
    wait_until(lambda: server.get().text == "v2 l1", 15)


@pytest.mark.ours
def test_broken_touch_leaves_the_old_serving(serve) -> None:
    """DESIGN 8: a touched script that cannot load is logged, and the old code goes on."""
    server = versioned(serve)
    assert server.get().text == "v1 l1"
    server.expect_log("deliberate-touch")
    server.log.allow(r"MWR0[34]\d\d|Traceback|File |Error|  \S")
    server.write("versioned.wsgi", "raise RuntimeError('deliberate-touch')\n")
    wait_until(lambda: (server.get(), server.log.find("deliberate-touch"))[1], 20, "the error is logged")
    assert {server.get().text for _ in range(20)} == {"v1 l1"}


@pytest.mark.ours
@pytest.mark.on("event", "prefork")
@pytest.mark.everywhere
def test_full_restart(serve) -> None:
    """R19, pitfall H5: `apachectl restart` (prefork: killpg) leaves keeper and supervisor alive, brings new code."""
    server = versioned(serve)
    server.get()
    helpers = {p.pid for p in server.helpers("keeper")}
    deploy(server, "v2", "l2")
    server.restart()
    wait_until(lambda: server.get().text == "v2 l2", 15)
    assert {p.pid for p in server.helpers("keeper")} == helpers and helpers


@pytest.mark.ours
def test_group_changes_at_graceful(serve) -> None:
    """Pitfall H8: threads 4 → 10 and a removed group while an old request is under way: all answered."""
    plan = Plan("processes=1 threads=4", "conform.wsgi", settings=ROLL)
    gone = Script("conform.wsgi", "gone")
    server = serve(plan.replace(groups={"gone": "threads=2"}, scripts={"/gone": gone}))
    old = [server.connect() for _ in range(2)]
    for c, path in zip(old, ("/gated?change", "/gone/gated?change"), strict=True):
        c.send(http.build(target=path))
        assert c.head().status == 200 and c.read_chunk() == b"before"
    # an upload that has not arrived yet, accepted by the old generation
    upload = server.connect()
    upload.send(http.build("POST", "/gone/echo", [("Content-Length", "4")]) + b"up")
    server.plan(plan.replace(options="processes=1 threads=10"))
    server.write_config()
    server.graceful()
    wait_until(lambda: server.get("/exact?x").status == 200, 10)
    upload.send(b"ld")
    assert upload.response().body == b"upld"
    (server.scratch / "change").touch()
    for c in old:
        assert c.read_chunk() == b"after" and c.read_chunk() == b""
        c.close()
    upload.close()


@pytest.mark.ours
@pytest.mark.on("event", "prefork", "nginx")
def test_module_added_at_graceful(serve) -> None:
    """Pitfall H9: a module that a graceful restart adds works; one that it removes leaves nothing."""
    server = serve(start=False)
    server.load, server.config = False, ""
    server.start()
    server.load = True
    server.plan(Plan(GROUP, "inspect.wsgi"))
    server.write_config()
    server.graceful()
    wait_until(lambda: server.get("/").status == 200, 20)
    assert look(server)["process_group"] == "g"
    server.load = False
    server.write_config("")
    server.log.allow("AH00128|AH01276|is forbidden|is not found")
    server.graceful()
    server.snapshot()
    assert server.get("/").status in (403, 404)


def _restarts(serve, count: int) -> None:
    server = versioned(serve)
    assert server.get().text == "v1 l1"
    for _ in range(10):
        server.graceful()
    server.get()
    parent = server.pid
    maps, rss, fds = procs.maps(parent), procs.memory_kib(parent), procs.descriptors(parent)
    samples = []
    for i in range(count):
        server.graceful()
        if i % 10 == 0:
            r = server.get()
            assert (r.status, r.text) == (200, "v1 l1")
            samples.append(procs.memory_kib(parent))
            # processes of generations long gone need not be remembered
            server._seen = {p for p in server._seen if p.alive()}
    assert procs.maps(parent) <= maps + 8, f"mappings {maps} → {procs.maps(parent)}"
    # nginx's master has two for each process, also for one that is just ending
    wait_until(lambda: procs.descriptors(parent) <= fds + 2, 20, f"{fds} descriptors, not {procs.descriptors(parent)}")
    late = statistics.median(samples[-5:])
    # httpd itself keeps up to 1.5 KiB a restart without any module of ours
    assert late <= rss + 1024 + 2 * count, f"RSS {rss} → {late} KiB in {count} restarts"
    helpers = server.helpers("keeper") + server.helpers("supervise")
    assert len(helpers) == 2
    for p in helpers:
        assert procs.descriptors(p.pid) < 200
    wait_until(lambda: len(server.processes()) < 60, 30, "old workers have gone")


@pytest.mark.ours
@pytest.mark.timeout(120)
def test_50_graceful_restarts(serve) -> None:
    """R26: mappings, memory and descriptors of the server's first process stay flat over 50 graceful restarts."""
    _restarts(serve, 50)


@pytest.mark.ours
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_1000_graceful_restarts(serve) -> None:
    """R26: the same over 1,000."""
    _restarts(serve, 1000)


@pytest.mark.ours
def test_parent_killed(serve) -> None:
    """Pitfall H10: after SIGKILL of the server's first process nothing of ours stays for ever once the children have gone."""
    server = serve(Plan(GROUP, "inspect.wsgi"))
    look(server)
    server.snapshot()
    children = server.server_processes()
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    for p in children:
        p.kill()
    server.log.allow(r"MWR03\d\d")
    wait_until(lambda: not server.leftovers(), 90, "keeper, supervisor and workers end", interval=0.2)
