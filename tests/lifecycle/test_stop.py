"""Stop, crashes of our own processes, one-process mode."""

from __future__ import annotations

import os
import signal

import pytest

from harness import http, product
from harness.inspect import look
from harness.load import Load
from harness.plan import Plan
from harness.server import Server
from harness.wait import wait_until

GROUP = "processes=2 threads=4"
CONFORM = Plan(GROUP, "conform.wsgi")


@pytest.mark.ours
@pytest.mark.everywhere
@pytest.mark.parametrize("graceful", [False, True], ids=["stop", "graceful-stop"])
def test_stop_leaves_nothing(serve, graceful: bool) -> None:
    """R19, N9: stop and graceful-stop end every process; no socket, no file but logs and the lock is left."""
    server = serve(CONFORM)
    assert server.get("/exact?x").status == 200
    server.stop(server.GRACEFUL_STOP if graceful else signal.SIGTERM)
    run = [os.path.join(w, n) for w, _, names in os.walk(server.run) for n in names]
    left = [p for p in run if not p.endswith(("/lock", "/httpd.pid"))]
    assert not left


@pytest.mark.ours
def test_stop_runs_atexit(serve) -> None:
    """DESIGN 7: a stop runs the applications' atexit functions."""
    server = serve(Plan(GROUP, "atexit.wsgi"), start=False)
    server.write("atexit.wsgi", """
import atexit, os
def note():
    open("{scratch}/atexit-%d" % os.getpid(), "w").close()
atexit.register(note)
def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []
""")  # fmt: skip
    server.start()
    assert server.get().status == 200
    server.stop()
    assert [n for n in os.listdir(server.scratch) if n.startswith("atexit-")]


@pytest.mark.ours
def test_stop_is_bounded_with_a_stuck_request(serve) -> None:
    """R19: a request that never ends does not hold up the stop beyond the time-outs."""
    server = serve(Plan("threads=2 shutdown-timeout=1 graceful-timeout=1", "conform.wsgi"))
    server.log.allow(r"MWR0[234]\d\d|AH00045|AH00046")
    with server.connect() as c:
        c.send(http.build(target="/slow?60"))
        wait_until(lambda: server.get("/exact?x").status == 200, 5)
        server.stop(deadline=20)


@pytest.mark.ours
@pytest.mark.on("prefork", "nginx")
@pytest.mark.everywhere
def test_ctrl_c(serve) -> None:
    """Pitfall H5: Ctrl-C in the foreground reaches the server's process group only; the rest is told to stop."""
    server = serve(CONFORM)
    assert server.get("/exact?x").status == 200
    server.snapshot()
    os.killpg(server.pid, signal.SIGINT)
    server.process.wait(20)
    server.log.allow("AH00169|AH00045")
    wait_until(lambda: not server.leftovers(), 20, "all ended")


@pytest.mark.ours
def test_supervisor_killed(serve) -> None:
    """DESIGN 1.3: kill -9 of the supervisor under load loses nothing: a new one takes over."""
    server = serve(CONFORM)
    server.log.allow(r"MWR03\d\d")
    assert server.get("/exact?x").status == 200
    with Load(server.port, "/exact?x", clients=4) as load:
        load.more(100)
        for _ in range(2):
            supervisor = server.helpers("supervise")[0]
            supervisor.kill()
            wait_until(lambda s=supervisor: [p for p in server.helpers("supervise") if p != s], 20, "a new supervisor")
            load.more(200)
    assert not load.bad, f"{len(load.bad)} of {len(load.results)}: {load.bad[:3]}"
    server.graceful()
    assert server.get("/exact?x").status == 200


@pytest.mark.ours
def test_keeper_killed(serve) -> None:
    """DESIGN 2: after kill -9 of the keeper requests go on or come back by themselves; a graceful restart mends all."""
    server = serve(CONFORM)
    server.log.allow(r"MWR0\d{3}")
    assert server.get("/exact?x").status == 200
    keeper = server.helpers("keeper")[0]
    keeper.kill()
    wait_until(lambda: not keeper.alive(), 5)
    server.graceful()
    wait_until(lambda: server.get("/exact?x").status == 200, 30, "requests are served again")
    assert len(server.helpers("keeper")) == 1


def test_worker_killed_while_idle(serve) -> None:
    """R19: an idle worker that is killed is replaced; requests meanwhile are served."""
    server = serve(Plan(GROUP, "inspect.wsgi"))
    server.log.allow(r"MWR03\d\d")
    pid = look(server)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(p.pid == pid for p in server.processes()), 5)
    for _ in range(10):
        assert look(server)["pid"] != pid


@pytest.mark.ours
def test_one_process_mode(apache) -> None:
    """Pitfall H11: `httpd -X` serves, and its end leaves nothing. (nginx's way is in nginx/test_life.py.)"""
    server = apache(CONFORM.apache(), args=["-X"])
    assert server.get("/exact?x").text == "exact:x"
    assert server.get("/echo", method="POST", body=b"b" * 100000).body == b"b" * 100000
    server.stop()


@pytest.mark.ours
def test_two_servers_do_not_meet(serve) -> None:
    """DESIGN 2: two servers with run directories of their own have keepers of their own."""
    first, second = serve(CONFORM), serve(CONFORM)
    assert first.get("/exact?1").text == "exact:1" and second.get("/exact?2").text == "exact:2"
    a, b = {p.pid for p in first.helpers("keeper")}, {p.pid for p in second.helpers("keeper")}
    assert len(a) == len(b) == 1 and a != b
    first.stop()
    assert second.get("/exact?3").text == "exact:3"


@pytest.mark.ours
def test_start_after_crash(serve) -> None:
    """R19: what a server killed outright leaves in its run directory does not keep the next from starting."""
    server: Server = serve(CONFORM)
    assert server.get("/exact?x").status == 200
    server.kill_all()
    server.process = None
    server.log.allow(r"AH00098|MWR03\d\d")
    server.start()
    assert server.get("/exact?y").text == "exact:y"


@pytest.mark.ours
@pytest.mark.root
def test_run_directory_of_somebody_else(serve) -> None:
    """DESIGN 9: a run directory that others can write is refused, with its name."""
    server: Server = serve(CONFORM.replace(settings={"socket_prefix": "{scratch}/sock"}), start=False)
    bad = server.scratch / "sock.mod-wsgi-rs"
    bad.mkdir()
    bad.chmod(0o777)
    os.chown(bad, 65534, 65534)
    server.log.allow(".")
    server.write_config()
    try:
        server.start()
        assert server.get("/exact?x").status == 503
    except AssertionError:
        pass
    text = server._tail(1 << 20)
    assert str(bad) in text, text


@pytest.mark.ours
@pytest.mark.long
def test_many_supervisor_kills(serve) -> None:
    """DESIGN 1.3: kills of a supervisor that has settled (the keeper's back-off starts anew), under load."""
    server = serve(CONFORM)
    server.log.allow(r"MWR03\d\d")
    with Load(server.port, "/exact?x", clients=8) as load:
        for _ in range(8):
            load.more(50)
            supervisors = wait_until(lambda: [p for p in server.helpers("supervise") if p.age() > 12], 60)
            supervisors[0].kill()
            wait_until(lambda s=supervisors[0]: [p for p in server.helpers("supervise") if p != s], 60)
    assert not load.bad, load.bad[:5]
    assert product.is_ours()
