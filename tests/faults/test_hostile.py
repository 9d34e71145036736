"""F12: an application, or a process beside it, that means harm: the server lives, other groups do not notice, what is
refused is logged. (Fake workers that lie on their sockets are in hostile/test_worker_socket.py.)"""

from __future__ import annotations

import errno
import json
import pwd
import subprocess
import threading
from collections.abc import Callable

import pytest

from harness import counted, http, product
from harness.front import Hosted
from harness.plan import Script
from harness.wait import wait_until

from .conftest import Run

pytestmark = [pytest.mark.ours, pytest.mark.timeout(300)]
Make = Callable[..., Hosted]


def evil(options: str = "") -> dict[str, dict[str, object]]:
    """A group of an application that means harm, beside the other one."""
    return {
        "groups": {"evil": f"processes=1 threads=3 queue-limit=10 {options}"},
        "scripts": {"/evil": Script("hostile.wsgi", "evil")},
    }


@pytest.mark.parametrize("word", ["resize", "punch", "ff", "zero", "two", "retire", "scribble"])
def test_f12_the_shared_table(run: Run, front: Make, word: str) -> None:
    """F12, pitfalls 2.1, S8, S9: an application truncates, punches, overwrites the table of its group, for ever: no
    process of the server dies, the other group loses nothing and is not slower, and a restart of that group mends it."""
    f = front(plan=evil())
    f.server.allow_log(r"MWR0(2|3|4)\d\d")
    servers = {p for p in f.server.server_processes()}
    helpers = {p.pid for p in f.server.helpers("keeper") + f.server.helpers("supervise")}
    assert f.get("/evil/signals").status == 200
    with f.load("good", clients=4) as load:
        load.more(50)
        said = json.loads(f.get(f"/evil/{word}").body)
        if word == "resize":
            assert said and set(said.values()) <= {errno.EPERM, errno.EACCES}, said
        if word == "punch":
            assert said == {"punched": True}
        # its own group may suffer; what asks it must not hold up the server
        asking = [threading.Thread(target=_ask, args=(f, 5)) for _ in range(8)]
        for t in asking:
            t.start()
        load.more(run.times(500, 3000), 60)
    for t in asking:
        t.join(60)
    t = counted.tally(load.results, f.ids)
    print(t)
    t.clean()
    assert t.p999 < 1.5
    assert all(p.alive() for p in servers), "no process of the server has died"
    assert {p.pid for p in f.server.helpers("keeper") + f.server.helpers("supervise")} == helpers
    if word == "scribble":
        # as often as it likes: each time its workers are killed
        f.server.log.wait("MWR0319")
    wait_until(lambda: _evil_serves(f), 20, "the group goes on with another table, by itself")
    assert word == "resize" or f.server.log.find('MWR0319: the table that group "evil" shares'), "and it is said"


def test_f12_an_order_outlives_a_damaged_table(front: Make) -> None:
    """F12, L7: how many workers people have ordered holds for the table that follows, too."""
    f = front(plan=evil())
    f.server.allow_log(r"MWR0(2|3|4)\d\d")
    f.server.ctl("scale", "evil", "2")
    wait_until(lambda: len(f.server.ready("evil")) == 2)
    _ask(f, 1, "zero")
    f.server.log.wait("MWR0319")
    wait_until(lambda: _evil_serves(f), 20, "the group goes on with another table, by itself")
    pools = [p for p in f.server.pools() if p["group"] == "evil" and p["state"] == "active"]
    assert [(p["target"], p["scaled"]) for p in pools] == [(2, 2)]


def _ask(f: Hosted, times: int, word: str = "signals") -> None:
    for _ in range(times):
        try:
            f.get(f"/evil/{word}", timeout=40)
        except (OSError, http.ProtocolError):
            continue


def _evil_serves(f: Hosted) -> bool:
    try:
        return f.get("/evil/signals", timeout=5).status == 200
    except OSError:
        return False


def test_f12_a_table_that_says_go_elsewhere(run: Run, front: Make) -> None:
    """F12, DESIGN 4.1: requests of a group whose table says for ever that another has taken over wait in no more threads
    of the server than the group's queue allows: other sites go on."""
    f = front(plan=evil())
    f.server.allow_log(r"MWR0(2|3|4)\d\d|AH00484|AH03490|AH00485")
    (f.server.prefix / "htdocs" / "s.txt").write_text("static")
    assert f.get("/evil/retire").status == 200
    crowd = [http.Connection(f.port, timeout=60) for _ in range(130)]
    try:
        for c in crowd:
            c.send(http.build("GET", "/evil/signals"))
        with f.load("crowd", clients=4) as load:
            load.more(300)
    finally:
        for c in crowd:
            c.close()
    t = counted.tally(load.results, f.ids)
    print(t)
    t.clean()
    assert t.p999 < 2


STRANGER = r"""
import socket, sys, struct
path, kind = sys.argv[1:]
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
try:
    s.connect(path)
    s.sendall(struct.pack("<IBBH", 24, 1, 0, 0) + struct.pack("<HHI", 2, 0, 1) + b"\x11" * 16)
    print("answered" if s.recv(100) else "closed")
except OSError as e:
    print(type(e).__name__)
"""


def stranger(user: str, path: str) -> str:
    """What another process of that user comes to with a socket."""
    p = pwd.getpwnam(user)
    done = subprocess.run(
        ["/usr/bin/python3", "-c", STRANGER, path, "hello"],
        user=p.pw_uid, group=p.pw_gid, extra_groups=[], capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.root
def test_f12_local_strangers(run: Run, front: Make) -> None:
    """F12, R21: a process of another uid reaches neither workers nor the supervisor; one of the server's uid without the
    token is shown the door by a worker, and gets no table from the supervisor; each refusal is logged."""
    f = front(plan=evil())
    user = product.server_user()[0]
    sockets = f.server.sockets()
    workers = [s for s in sockets if "/w/" in s]
    assert len(workers) >= 2
    for path in sockets:
        assert stranger("games", path) == "PermissionError", path
    f.server.expect_log(r"MWR0422: a peer's greeting was refused: wrong token")
    f.server.allow_log("MWR0312|MWR0313")
    for path in workers:
        assert stranger(user, path) in ("closed", "ConnectionResetError"), path
    [ctl] = [s for s in sockets if s.endswith("/ctl.sock")]
    assert stranger(user, ctl) in ("closed", "ConnectionResetError")
    assert f.get("/exact?id=on").status == 200


@pytest.mark.root
def test_f12_the_other_groups_files(run: Run, front: Make) -> None:
    """F12: a group of another user cannot look into the directories of sockets, nor signal anything of the server's."""
    f = front(plan=evil("user=games group=games"))
    said = json.loads(f.get("/evil/signals").body)
    assert said["parent"] == errno.EPERM and said["init"] == errno.EPERM
    for path in f.server.sockets():
        assert stranger("games", path) == "PermissionError"
