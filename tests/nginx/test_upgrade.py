"""N9: what administrators do to a running nginx: check, reload, upgrade the binary, go back, stop; and what happens to it."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
from collections.abc import Callable

import pytest

from harness import http, procs, product
from harness.apache import Apache
from harness.load import Load
from harness.nginx import Nginx
from harness.plan import Plan
from harness.wait import wait_until

PLAN = Plan("processes=2 threads=5", "life.wsgi")
MakeNginx = Callable[..., Nginx]


def serving(nginx: MakeNginx, plan: Plan = PLAN, **kw: object) -> Nginx:
    """A server with two ready workers."""
    http_config, config = plan.nginx()
    server = nginx(config, http_config=http_config, **kw)
    wait_until(lambda: len(server.ready()) == 2, 15, "workers are ready")
    return server


def test_a_check_beside_a_live_server_changes_nothing(nginx: MakeNginx) -> None:
    """N9: `nginx -t`, also of another configuration and of a broken one, leaves processes, sockets and workers as they
    are, and no line in the supervisor's log."""
    server = serving(nginx)
    before = ({p.pid for p in server.processes()}, set(server.sockets()), server.ready())
    lines = len(server.log.find("has configured"))
    with Load(server.port, clients=2) as load:
        load.more(50)
        good = server.http_config
        assert server.configtest()[0] == 0
        server.http_config = good.replace("processes=2", "processes=4") + "wsgi_daemon_process another;"
        assert server.configtest()[0] == 0
        server.http_config = good + "wsgi_daemon_process broken threads=no;"
        assert server.configtest()[0] != 0
        server.http_config = good
        server.write_config()
        load.more(50)
    assert not load.bad
    assert ({p.pid for p in server.processes()}, set(server.sockets()), server.ready()) == before
    assert len(server.log.find("has configured")) == lines
    server.log.allow(r"\[emerg\].*threads='no'")


def test_twenty_reloads_under_load(nginx: MakeNginx) -> None:
    """N9, N17: 20 reloads, every second one with a changed group: no request is lost, and nothing is left of the old."""
    server = serving(nginx)
    with Load(server.port, "/sleep?0.005", clients=6) as load:
        load.more(50)
        for i in range(20):
            if i % 2:
                server.http_config = PLAN.replace(options=f"processes=2 threads=5 env=MWR_ROUND={i}").nginx()[0]
                server.write_config()
            server.reload()
            load.more(20)
    assert not load.bad, load.bad[:5]
    wait_until(lambda: len(server.server_processes()) == 2, 20, "old processes of nginx have gone")
    wait_until(lambda: len(server.helpers("keeper") + server.helpers("supervise")) == 2, 5)
    wait_until(lambda: len([w for w in server.workers()]) == 2, 20, "old workers have gone")


def master_of(server: Nginx, name: str = "nginx.pid") -> int:
    """The master whose file of this name is there, once it is."""
    path = server.run / name

    def number() -> int:
        return int(path.read_text()) if path.exists() and path.read_text().strip() else 0

    return wait_until(number, 15, f"{name} is there")


def children(pid: int) -> list[procs.Process]:
    return [
        p
        for p in procs.descendants([pid])
        if p.ppid == pid and p.cmdline and p.cmdline[0].startswith("nginx: worker process")
    ]


def upgraded(server: Nginx) -> tuple[int, int]:
    """A second master beside the first: pids of the old and the new one."""
    old = master_of(server)
    os.kill(old, signal.SIGUSR2)
    assert master_of(server, "nginx.pid.oldbin") == old
    new = wait_until(lambda: (n := master_of(server)) != old and n, 15, "the new master")
    wait_until(lambda: len(children(new)) == 2, 15, "its processes")
    server.snapshot()
    return old, new


def test_binary_upgrade(nginx: MakeNginx) -> None:
    """N9: USR2, WINCH and QUIT of the old master, under load: nothing is lost; the workers go on, and end with the new
    master. They have the environment of the first start."""
    server = serving(nginx, daemon=True, env={"MWR_TEST_KEPT": "as it was"})
    with Load(server.port, "/sleep?0.005", clients=4) as load:
        load.more(50)
        old, new = upgraded(server)
        load.more(50)
        os.kill(old, signal.SIGWINCH)
        wait_until(lambda: not children(old), 20, "the old master's processes end")
        load.more(50)
        os.kill(old, signal.SIGQUIT)
        wait_until(lambda: not procs.look(old), 20, "the old master ends")
        load.more(100)
        assert len(server.helpers("keeper")) == 1 and len(server.ready()) == 2
        server.reload()
        load.more(50)
    assert not load.bad, load.bad[:5]
    assert server.pid == new
    # what the first binary was started with, and nothing of what nginx says to the second
    worker = procs.look(min(server.ready()))
    assert worker
    environ = pathlib.Path(f"/proc/{worker.pid}/environ").read_bytes().split(b"\0")
    assert b"MWR_TEST_KEPT=as it was" in environ and not [e for e in environ if e.startswith(b"NGINX=")]
    server.stop()
    assert not worker.alive()


def test_going_back_after_an_upgrade(nginx: MakeNginx) -> None:
    """N9: USR2, WINCH; then HUP to the old master and QUIT to the new one: nothing is lost, the old one serves on."""
    server = serving(nginx, daemon=True)
    with Load(server.port, "/sleep?0.005", clients=4) as load:
        load.more(50)
        old, new = upgraded(server)
        os.kill(old, signal.SIGWINCH)
        wait_until(lambda: not children(old), 20, "the old master's processes end")
        load.more(50)
        os.kill(old, signal.SIGHUP)
        wait_until(lambda: len(children(old)) == 2, 20, "the old master has processes again")
        load.more(50)
        os.kill(new, signal.SIGQUIT)
        wait_until(lambda: not procs.look(new), 20, "the new master ends")
        load.more(100)
        wait_until(lambda: len(server.ready()) == 2, 10)
        load.more(100)
    assert not load.bad, load.bad[:5]
    assert master_of(server) == old
    assert len(server.helpers("keeper")) == len(server.helpers("supervise")) == 1


def test_upgrade_that_is_given_up_at_once(nginx: MakeNginx) -> None:
    """N9: USR2, then TERM to the new master: the old one, which never stopped, goes on with its workers."""
    server = serving(nginx, daemon=True)
    with Load(server.port, "/sleep?0.005", clients=4) as load:
        load.more(50)
        old, new = upgraded(server)
        os.kill(new, signal.SIGTERM)
        wait_until(lambda: not procs.look(new), 20, "the new master ends")
        load.more(100)
    # TERM breaks off what the processes of the new master are doing
    assert len(load.bad) <= 8, load.bad[:10]
    assert master_of(server) == old
    for _ in range(20):
        assert server.get().status == 200
    assert len(server.helpers("keeper")) == 1


@pytest.mark.parametrize("how", ["signal", "command"])
def test_quit_drains(nginx: MakeNginx, how: str) -> None:
    """N9: QUIT (also `nginx -s quit`, and the stop of Debian's unit): what runs is answered, then everything ends."""
    server = serving(nginx)
    with server.connect() as c:
        c.send(http.build(target="/sleep?1"))
        wait_until(lambda: any(w["running"] for w in server.workers()))
        seen = server.processes()
        if how == "signal":
            os.kill(server.pid, signal.SIGQUIT)
        else:
            subprocess.run(server.command("-s", "quit"), check=True, timeout=20, env=server.env)
        r = c.response()
        assert r.status == 200 and r.text.endswith(" None")
    wait_until(lambda: not [p for p in seen if p.alive()], 15, "all have ended")


@pytest.mark.parametrize("daemon", [False, True])
def test_master_killed(nginx: MakeNginx, daemon: bool) -> None:
    """N9: after SIGKILL of the master its processes serve on; once they have gone, so has everything of ours; the next
    start serves."""
    server = serving(nginx, daemon=daemon)
    server.log.allow(r"MWR03\d\d|still could not bind|Address already in use")
    master, processes = server.pid, server.server_processes()
    server.snapshot()
    os.kill(master, signal.SIGKILL)
    wait_until(lambda: not procs.look(master), 5)
    for _ in range(10):
        assert server.get().status == 200
    for p in processes:
        p.kill(signal.SIGQUIT)
    wait_until(lambda: not server.leftovers(), 60, "keeper, supervisor and workers end", interval=0.2)
    (server.run / "nginx.pid").unlink(missing_ok=True)
    server.process = None
    server.start()
    wait_until(lambda: server.get().status == 200, 10)


def test_processes_of_nginx_killed(nginx: MakeNginx) -> None:
    """N9, F4: rows of a killed process of nginx are free within a second, and the master's next one serves."""
    server = serving(nginx)
    server.log.allow(r"exited on signal 9|MWR0421")
    for round_ in range(3):
        held = [server.connect() for _ in range(6)]
        for c in held:
            c.send(http.build(target=f"/wait?gate{round_}"))
        wait_until(lambda: sum(w["running"] for w in server.workers()) == 6, 10, "all have begun")
        for p in server.server_processes():
            p.kill()
        (server.scratch / f"gate{round_}").touch()
        wait_until(lambda: not any(w["running"] or w["sent"] for w in server.workers()), 1, "their rows are free")
        for c in held:
            c.close()
        wait_until(lambda: len(server.server_processes()) == 2, 10, "new processes of nginx")
        assert server.get().status == 200


def test_a_failing_reload_of_ours_ends_no_master(nginx: MakeNginx) -> None:
    """N9: the supervisor's program is gone, the run directory cannot be used: the master lives, requests get 503 or are
    served by what there is, the next reload mends it."""
    server = serving(nginx)
    server.log.allow(r"MWR0(1|2)\d\d|MWR03\d\d")
    good = server.http_config
    for broken in ("wsgi_supervisor /nowhere/mod-wsgi-rs;", "wsgi_socket_prefix /proc/nowhere/x;"):
        server.http_config = good + broken
        server.write_config()
        server.reload()
        assert procs.look(server.pid) and server.get().status in (200, 503)
        server.http_config = good
        server.write_config()
        server.reload()
        wait_until(lambda: server.get().status == 200, 15, "mended")
    server.http_config = good + "wsgi_daemon_process x user=nobody-here;"
    server.write_config()
    server.log.allow(r"\[emerg\].*nobody-here")
    os.kill(server.pid, signal.SIGHUP)
    server.log.wait(r"\[emerg\].*nobody-here")
    assert server.get().status == 200


def test_several_servers_beside_each_other(nginx: MakeNginx, apache: Callable[..., Apache]) -> None:
    """N9: two nginx and an Apache have a keeper each; the end of one concerns no other."""
    first, second = serving(nginx), serving(nginx, daemon=True)
    third = apache(PLAN.apache())
    servers = (first, second, third)
    keepers = [{p.pid for p in s.helpers("keeper")} for s in servers]
    assert [len(k) for k in keepers] == [1, 1, 1] and len(set.union(*keepers)) == 3
    for ends, *rest in ((first, second, third), (second, third)):
        ends.stop()
        for s in rest:
            assert s.get().status == 200
    assert product.is_ours()


def test_no_master_process(nginx: MakeNginx) -> None:
    """N9: `master_process off`: serves; a reload is beyond nginx itself, as documented: it serves nobody after, but
    nothing of ours is left when it ends."""
    http_config, config = PLAN.nginx()
    server = nginx(config, http_config=http_config, main="master_process off;")
    server.allow_log("open socket|aio|MWR0")
    assert server.get().status == 200
    assert server.get(method="POST", body=b"x" * 100_000).status == 200
    seen = server.processes()
    os.kill(server.pid, signal.SIGHUP)
    server.log.wait("reconfiguring")
    server.snapshot()
    server.stop(signal.SIGTERM)
    assert not [p for p in seen if p.alive()]
