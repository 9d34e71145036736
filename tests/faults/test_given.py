"""F14: what a worker is given, read from inside, from /proc, and from a program that it starts."""

from __future__ import annotations

import grp
import json
import os
import pathlib
import pwd
from collections.abc import Callable
from typing import Any

import pytest

from harness import product
from harness.front import Hosted

from .conftest import Run

pytestmark = [pytest.mark.ours]
Make = Callable[..., Hosted]
#: names that the server's environment has and a worker must not get, one of each kind
DENIED = {
    "LISTEN_FDS": "3", "LISTEN_PID": "1", "LISTEN_FDNAMES": "x", "NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1",
    "WATCHDOG_PID": "1", "INVOCATION_ID": "x", "JOURNAL_STREAM": "8:1", "MAINPID": "1", "CREDENTIALS_DIRECTORY": "/x",
    "NGINX": "5;", "APACHE_RUN_DIR": "/x", "APACHE_LOG_DIR": "/x", "MOD_WSGI_SECRET": "x", "PYTHONHOME": "/nowhere",
    "PYTHONSTARTUP": "/x", "PYTHONINSPECT": "1", "__PYVENV_LAUNCHER__": "/x",
}  # fmt: skip
KEPT = {
    "DATABASE_URL": "postgres://x", "SECRET_KEY": "s3cret", "TZ": "Asia/Tokyo", "http_proxy": "http://p:1",
    "SSL_CERT_FILE": "/c", "OTEL_SERVICE_NAME": "o", "SENTRY_DSN": "d", "PYTHONDONTWRITEBYTECODE": "1",
}  # fmt: skip


def given(f: Hosted) -> dict[str, Any]:
    return json.loads(f.get("/inherit?id=given").body)


@pytest.mark.root
def test_f14_identity(run: Run, front: Make) -> None:
    """F14: uids and gids all four, supplementary groups, no way back to root; no capability is left."""
    user = pwd.getpwnam("games")
    f = front(options="user=games group=games supplementary-groups=www-data")
    status = given(f)["status"]
    assert set(status["Uid"].split()) == {str(user.pw_uid)}
    assert set(status["Gid"].split()) == {str(user.pw_gid)}
    wanted = {user.pw_gid, grp.getgrnam("www-data").gr_gid}
    assert set(map(int, status["Groups"].split())) | {user.pw_gid} == wanted
    for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(status[name], 16) == 0, name


@pytest.mark.root
@pytest.mark.parametrize("option", ["", "no-new-privileges=on", "no-new-privileges=off"])
def test_f14_no_new_privileges(run: Run, front: Make, option: str) -> None:
    """F14, DESIGN 9: as configured; without the option off on Apache, for the sake of configurations of mod_wsgi, and on on
    nginx."""
    on = option.endswith("on") if option else run.kind == "nginx"
    assert given(front(options=option))["status"]["NoNewPrivs"] == ("1" if on else "0")


def test_f14_environment(run: Run, front: Make) -> None:
    """F14: the server's environment less the deny list; USER, LOGNAME and HOME of the uid; nothing of ours."""
    # nginx would take it for its own: what it says of inherited sockets (nginx/test_upgrade.py has it)
    denied = {k: v for k, v in DENIED.items() if k != "NGINX" or run.kind != "nginx"}
    f = front(env={**denied, **KEPT, "USER": "nobody-else", "HOME": "/nowhere"})
    env = given(f)["environ"]
    assert not set(DENIED) & set(env), set(DENIED) & set(env)
    assert {k: env.get(k) for k in KEPT} == KEPT
    me = pwd.getpwuid(int(given(f)["status"]["Uid"].split()[0]))
    assert (env["USER"], env["LOGNAME"], env["HOME"]) == (me.pw_name, me.pw_name, me.pw_dir)
    assert not [k for k in env if k.startswith(("MWR_", "MOD_WSGI")) and k not in f.server.env]


def test_f14_signals_limits_session(run: Run, front: Make) -> None:
    """F14: no signal blocked, none ignored but what Python ignores, a session of its own, umask and working directory
    as configured, the limits of the server but for descriptors, more readily killed for want of memory than the server."""
    import signal

    f = front(options="umask=0027")
    said = given(f)
    status = said["status"]
    assert int(status["SigBlk"], 16) == 0
    ignored = {n for n in range(1, 65) if int(status["SigIgn"], 16) >> (n - 1) & 1}
    # libc keeps two for itself and lets nobody set them
    assert ignored <= {signal.SIGPIPE, signal.SIGXFSZ, 32, 33}
    assert said["umask"] == 0o027 and said["cwd"] == "/" and said["root"] == "/"
    pid = f.workers()[0]
    assert said["session"] in f.workers()
    parent, worker = (dict(_limits(p)) for p in (f.server.pid, pid))
    assert {k: v for k, v in parent.items() if k != "Max open files"} == {
        k: v for k, v in worker.items() if k != "Max open files"
    }
    assert parent["Max open files"][1] == worker["Max open files"][1]
    # and the soft one: what a subprocess inherits, and select(2) relies on
    assert parent["Max open files"][0] == worker["Max open files"][0]
    scores = [int(pathlib.Path(f"/proc/{p}/oom_score_adj").read_text()) for p in (f.server.pid, pid)]
    # where it may be raised at all
    assert scores[1] in (min(scores[0] + 200, 1000), scores[0])
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"


def _limits(pid: int) -> list[tuple[str, list[str]]]:
    with open(f"/proc/{pid}/limits") as file:
        return [(line[:26].strip(), line[26:].split()[:2]) for line in file.readlines()[1:]]


def test_f14_descriptors(run: Run, front: Make) -> None:
    """F14, pitfalls 2.4, 2.5: stdin /dev/null, two pipes, our own above 1023 and no other: no socket of the server, no log; a
    program that the application starts, even with close_fds=False, gets none of ours."""
    f = front()
    said = given(f)
    # the handle of a directory that the listing itself opened, and the notes of the application
    low = {int(n): to for n, to in said["descriptors"].items() if int(n) < 1024}
    assert low.pop(0) == "/dev/null"
    assert low.pop(1).startswith("pipe:") and low.pop(2).startswith("pipe:")
    ours = {n: to for n, to in low.items() if not to.startswith((str(f.server.scratch), "/proc/"))}
    assert not ours, ours
    high = [to for n, to in said["descriptors"].items() if int(n) >= 1024]
    assert high and not [
        to for to in high if not to.startswith(("socket:", "anon_inode:", "/memfd:", "pipe:", "/proc"))
    ]
    # not the listening sockets of the server
    with open("/proc/net/tcp") as file:
        inodes = {line.split()[9] for line in file.readlines()[1:]}
    assert not [to for to in high if to.startswith("socket:") and to[8:-1] in inodes]
    child = [line.partition(" ")[2] for line in said["child"]]
    left = [to for to in child if to.startswith(("socket:", "anon_inode:", "/memfd"))]
    assert not left, left
    assert len([to for to in child if to.startswith("pipe:")]) <= 3


def test_f14_nothing_shows_outside(run: Run, front: Make) -> None:
    """F14, pitfall 10.2: values of env= are in no command line and not in the first environment others could read."""
    f = front(options="env=PASSWORD=hunter2-shown")
    assert given(f)["environ"]["PASSWORD"] == "hunter2-shown"
    for p in f.server.processes():
        assert not any("hunter2" in a for a in p.cmdline), p
    assert product.is_ours()
