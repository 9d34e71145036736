"""F8: what the system refuses: descriptors, processes, directories, and time that jumps. Honest errors, and recovery by
itself. (The full disk is in apache/test_spool.py.)"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pwd
import resource
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from harness import counted, http, procs, product
from harness.front import Hosted
from harness.wait import wait_until

from .conftest import Run

pytestmark = [pytest.mark.ours, pytest.mark.timeout(300)]
Make = Callable[..., Hosted]
#: bodies that are handed over in memory stay there
MEMORY = {"own": {"nginx": "client_body_buffer_size 64k;"}}


def limit(pid: int, what: int, soft: int) -> int:
    """Sets a soft limit of a process as its own user, who alone may where root lacks the right; gives the former one."""
    owner = os.stat(f"/proc/{pid}")
    code = "import sys, resource as r; p, w, s = map(int, sys.argv[1:]); print(r.prlimit(p, w, (s, r.prlimit(p, w)[1]))[0])"
    command = ["/usr/bin/python3", "-c", code, str(pid), str(what), str(soft)]
    who = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if product.IS_ROOT else {}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, **who).stdout)  # type: ignore[call-overload]


@contextlib.contextmanager
def few_descriptors(pid: int, spare: int = 0) -> Iterator[None]:
    """A process may open `spare` descriptors more than it has."""
    highest = max(int(n) for n in os.listdir(f"/proc/{pid}/fd"))
    free = highest + 1 - procs.descriptors(pid)
    before = limit(pid, resource.RLIMIT_NOFILE, max(highest + 1 - free + spare, 3))
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError, subprocess.CalledProcessError):
            limit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.root
def test_f8_worker_without_descriptors(run: Run, front: Make) -> None:
    """F8: a worker that can open nothing more: what cannot go to it goes to the other one, and the application hears an
    honest error; with descriptors it takes connections again."""
    f = front()
    f.server.allow_log(r"MWR042\d|Too many open files")
    first, second = f.settled()
    with f.load("fds") as load, few_descriptors(first):
        # fewer than the other one has threads
        held = [http.Connection(f.port) for _ in range(3)]
        for i, c in enumerate(held):
            c.send(http.build("GET", f"/gate?id=held-{i}&gate=gate"))
        load.more(300)
        (f.scratch / "gate").touch()
        for i, c in enumerate(held):
            assert c.response().body == counted.payload(f"held-{i}", 100)
            c.close()
    with f.load("again") as load2:
        load2.more(500)
    for one in (load, load2):
        t = counted.tally(one.results, f.ids)
        print(t)
        t.clean()
    ran = counted.begun(f.ids)
    assert {p for n, w in ran.items() if n.startswith("again") for p in w} == {first, second}, "both serve again"


#: so few more that two dozen clients and what they ask for cannot all have one
SPARE = {"event": 3, "prefork": 1, "nginx": 8}


@pytest.mark.root
def test_f8_server_process_without_descriptors(run: Run, front: Make) -> None:
    """F8: processes of the server that can open nothing more towards a worker: 503 and a line, or an old connection; no
    request is begun and not answered; recovery by itself."""
    f = front(plan=MEMORY)
    f.server.allow_log(r"MWR02(04|09|10|14)|AH\d{5}|Too many open files")
    f.settled()
    with contextlib.ExitStack() as stack:
        for p in f.server.server_processes():
            stack.enter_context(few_descriptors(p.pid, spare=SPARE[run.kind]))
        # each connection of a client takes one, so does each to a worker: on nginx too with a body that is too large for those
        # that many requests share
        fields = [("Content-Length", "20000")]
        answers = []
        held = []
        for i in range(24):
            try:
                c = http.Connection(f.port, timeout=8)
                c.send(http.build("POST", f"/gate?id=few-{i}&gate=gate", fields) + b"x" * 20_000)
                held.append((i, c))
            except OSError:
                continue
        (f.scratch / "gate").touch()
        for i, c in held:
            try:
                r = c.response()
                answers.append(r.status)
                assert r.status == 503 or (r.status == 200 and r.body == counted.payload(f"few-{i}", 100))
                ran = f"few-{i}" in counted.begun(f.ids)
                assert ran == (r.status == 200)
            except (TimeoutError, OSError):
                # the server itself could not take the connection
                answers.append(0)
            c.close()
        assert set(answers) - {200}, "nothing was short"
    with f.load("after") as load:
        load.more(300)
    t = counted.tally(load.results, f.ids)
    print(answers, t)
    t.clean()


@pytest.mark.root
def test_f8_supervisor_without_descriptors(run: Run, front: Make) -> None:
    """F8: a supervisor that can open nothing more: MWR0305 with the reason, what lives serves; then it recovers."""
    f = front()
    f.server.expect_log(r"MWR0305: a worker of group \"g\" cannot be started: .*Too many open files")
    f.server.allow_log(r"MWR0306|MWR0207|MWR031\d")
    [supervisor] = f.server.helpers("supervise")
    first, second = f.settled()
    with f.load("sup") as load:
        load.more(50)
        with few_descriptors(supervisor.pid):
            os.kill(first, signal.SIGKILL)
            f.server.log.wait("MWR0305")
            load.more(300)
        wait_until(lambda: len(f.workers()) == 2, 40, "the second worker is back")
        load.more(100)
    t = counted.tally(load.results, f.ids, [first], claimed=f.claimed())
    print(t)
    t.clean(running=5)
    assert second in f.workers()


@pytest.fixture
def process_group() -> Iterator[pathlib.Path]:
    """A control group of this test's own that limits the number of processes."""
    for base in ("/sys/fs/cgroup", "/sys/fs/cgroup/pids"):
        path = pathlib.Path(base) / f"mwr-faults-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        if (path / "pids.max").exists():
            break
        path.rmdir()
    else:
        pytest.skip("no control group with a limit of processes can be made here")
    try:
        yield path
    finally:
        (path / "pids.max").write_text("max")
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (path.parent / "cgroup.procs").write_text(pid)
        wait_until(lambda: not (path / "cgroup.procs").read_text().split(), 10, "the group is empty")
        path.rmdir()


@pytest.mark.root
def test_f8_no_process_can_be_made(run: Run, front: Make, process_group: pathlib.Path) -> None:
    """F8: fork fails for the supervisor: MWR0305 with the reason, with back-off; what lives serves; then it recovers."""
    f = front()
    f.server.expect_log(r"MWR0305: a worker of group \"g\" cannot be started: .*Resource temporarily unavailable")
    f.server.allow_log(r"MWR0306|MWR0207")
    [supervisor] = f.server.helpers("supervise")
    first, second = f.settled()
    (process_group / "cgroup.procs").write_text(str(supervisor.pid))
    with f.load("fork") as load:
        load.more(50)
        (process_group / "pids.max").write_text("1")
        os.kill(first, signal.SIGKILL)
        f.server.log.wait("MWR0305")
        load.more(300)
        assert len(f.server.log.find("MWR0305")) < 6
        (process_group / "pids.max").write_text("max")
        wait_until(lambda: len(f.workers()) == 2, 40, "the second worker is back")
        load.more(100)
    t = counted.tally(load.results, f.ids, [first], claimed=f.claimed())
    print(t)
    t.clean(running=5)
    assert second in f.workers()


def test_f8_application_cannot_fork(run: Run, front: Make) -> None:
    """F8: what fails in the application fails there: it hears the reason, requests go on."""
    import json

    f = front()
    f.server.allow_log(r"MWR042\d|\[pid")
    workers = f.settled()
    assert set(json.loads(f.get("/fails?id=x").body).values()) == {"done"}
    with contextlib.ExitStack() as stack:
        for pid in workers:
            before = limit(pid, resource.RLIMIT_NPROC, 1)
            stack.callback(limit, pid, resource.RLIMIT_NPROC, before)
        said = json.loads(f.get("/fails?id=y").body)
        assert "unavailable" in said["fork"] and "thread" in said["thread"], said
        with f.load("nproc") as load:
            load.more(200)
    assert set(json.loads(f.get("/fails?id=z").body).values()) == {"done"}
    counted.tally(load.results, f.ids).clean()
    assert f.workers() == workers


def test_f8_run_directory_removed(run: Run, front: Make) -> None:
    """F8: the run directory is removed under a running server: what has connections goes on, the rest gets an honest
    503; the next graceful restart has everything anew and nothing of the old is left."""
    f = front()
    f.server.allow_log(r"MWR0(2|3)\d\d|AH\d{5}")
    f.settled()
    with f.load("gone") as load:
        load.more(200)
        [ctl] = [s for s in f.server.sockets() if s.endswith("/ctl.sock")]
        shutil.rmtree(pathlib.Path(ctl).parent)
        load.more(300)
    old = set(f.server.helpers("keeper") + f.server.helpers("supervise"))
    began = time.monotonic()
    f.reload()
    wait_until(lambda: _serves(f), 30, "served again")
    took = time.monotonic() - began
    with f.load("anew") as after:
        after.more(300)
    counted.tally(after.results, f.ids).clean()
    t = counted.tally(load.results, f.ids)
    print(f"{took:.1f} s", t)
    assert not t.twice and not t.wrong
    assert all(r.status == 503 for r in t.lost), t.lost[:3]
    # nobody can find them any more: they need not wait for a configuration
    wait_until(lambda: not any(p.alive() for p in old), 30, "the old keeper and supervisor have gone")
    assert len(f.server.helpers("keeper")) == len(f.server.helpers("supervise")) == 1


def _serves(f: Hosted) -> bool:
    try:
        return f.get("/exact?id=serves&size=5", timeout=5).status == 200
    except OSError:
        return False


#: a private view of the file system in which temporary directories cannot be written; the server's own place can
READ_ONLY = (
    "mount --make-rprivate / && mount --bind {prefix} {prefix} && "
    "mount --bind /tmp /tmp && mount --rbind {prefix} {prefix} && "
    "mount -o remount,bind,ro /tmp && mount --bind /var/tmp /var/tmp && mount -o remount,bind,ro /var/tmp && "
    "{more}"
    'exec "$@"'
)
#: nginx keeps bodies in a directory of its own
NGINX_BODIES = "d={prefix}/tmp-client_body && install -d -m 700 -o {user} $d && mount --bind $d $d && mount -o remount,bind,ro $d && "


@pytest.mark.root
def test_f8_temporary_directories_read_only(run: Run, front: Make) -> None:
    """F8: /tmp and /var/tmp cannot be written (in a mount namespace of the test's own): requests are served; a body too
    large for memory is refused with 503 (by nginx, with its 500) and a line; once they can be written, everything is
    served, by itself."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    nginx = run.kind == "nginx"
    more = NGINX_BODIES.replace("{user}", product.server_user()[0]) if nginx else ""
    f = front(wrap=["unshare", "-m", "sh", "-c", READ_ONLY.replace("{more}", more), "sh"], plan=MEMORY)
    own = r"\[crit\].* failed \(30: Read-only file system\)"
    f.server.expect_log(own if nginx else "MWR0214: request body cannot be stored: Read-only file system")
    # the mix without its one kind of large bodies
    body = counted.payload("large", 100_000)
    r = f.get("/post?id=large", method="POST", body=body)
    assert (r.status, r.header("Retry-After")) == ((500, None) if nginx else (503, "30"))
    for i in range(20):
        assert f.get(f"/exact?id=small-{i}").status == 200
        assert f.get(f"/post?id=post-{i}", method="POST", body=b"x" * 60_000).status == 200
    # an answer larger than memory holds goes at its client's pace
    f.server.allow_log("MWR0217")
    with http.Connection(f.port) as c:
        r = c.request(target="/big?id=big&size=4")
        assert r.complete and len(r.body) == 4 << 20
    assert "large" not in counted.begun(f.ids)
    bodies = [str(f.server.prefix / "tmp-client_body")] if nginx else []
    for place in ("/tmp", "/var/tmp", *bodies):
        subprocess.run(["nsenter", "-m", "-t", str(f.server.pid), "mount", "-o", "remount,bind,rw", place], check=True)
    assert f.get("/post?id=large-2", method="POST", body=body).status == 200
    with f.load("rw") as load:
        load.more(200)
    counted.tally(load.results, f.ids).clean()


#: a clock of our own: what libc says of CLOCK_REALTIME is off by what stands in a file
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *off;
static long offset(void) {
    if (!off) {
        int fd = open(CLOCK_FILE, O_RDONLY | O_CLOEXEC);
        void *p = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
        if (fd >= 0) close(fd);
        if (p == MAP_FAILED) return 0;
        off = p;
    }
    return *off;
}
int clock_gettime(clockid_t id, struct timespec *t) {
    int r = syscall(SYS_clock_gettime, id, t);
    if (r == 0 && id == CLOCK_REALTIME) t->tv_sec += offset();
    return r;
}
int gettimeofday(struct timeval *restrict t, void *restrict z) {
    struct timespec s;
    clock_gettime(CLOCK_REALTIME, &s);
    t->tv_sec = s.tv_sec;
    t->tv_usec = s.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *out) {
    struct timespec s;
    clock_gettime(CLOCK_REALTIME, &s);
    if (out) *out = s.tv_sec;
    return s.tv_sec;
}
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_f8_clock_jumps(run: Run, front: Make, tmp_path: pathlib.Path) -> None:
    """F8: the clock jumps by years, forward and back: nothing is lost, no time-out fires, no worker is replaced."""
    place = pathlib.Path("/var/tmp") / f"mwr-clock-{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        offset, library = place / "offset", place / "clock.so"
        offset.write_bytes(struct.pack("<q", 0))
        (place / "clock.c").write_text(CLOCK)
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O1", f'-DCLOCK_FILE="{offset}"', "-o", library, place / "clock.c", "-ldl"],
            check=True,
        )
        f = front(
            env={"LD_PRELOAD": str(library)},
            options="request-timeout=20 queue-timeout=20 maximum-requests=0 restart-interval=3600 inactivity-timeout=600",
        )
        before = f.settled()
        assert all(str(library) in pathlib.Path(f"/proc/{pid}/maps").read_text() for pid in before)
        [supervisor] = f.server.helpers("supervise")
        assert str(library) in pathlib.Path(f"/proc/{supervisor.pid}/maps").read_text()
        with f.load("clock") as load:
            for years in (10, -5, 0, 1) * run.times(1, 5):
                # one word, at once
                fd = os.open(offset, os.O_WRONLY)
                os.pwrite(fd, struct.pack("<q", years * 31_557_600), 0)
                os.close(fd)
                load.more(200)
        r = f.get("/exact?id=date&size=5")
        assert f" {time.gmtime().tm_year + 1} " in (r.header("Date") or ""), "the clock is the test's"
        t = counted.tally(load.results, f.ids)
        print(t)
        t.clean()
        assert f.workers() == before
        assert product.is_ours()
        f.server.stop()
    finally:
        shutil.rmtree(place)


#: nginx's directories for bodies and answers, each on a file system of 2 MiB of their own
SMALL = (
    "mount --make-rprivate / && for d in {prefix}/tmp-client_body {prefix}/tmp-wsgi; do install -d $d && "
    'mount -t tmpfs -o size=2m,mode=700,uid={uid} tmpfs $d || exit 1; done && exec "$@"'
)


@pytest.mark.root
def test_f8_disk_full_on_nginx(front_of: Callable[..., Hosted]) -> None:
    """F8: nginx keeps large bodies and answers in files of its own. Without room for a body: its own 500, the application has
    not run; without room for an answer: the connection breaks off visibly, and the worker is free; with room again all is
    served. (apache/test_spool.py has the same for httpd.)"""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    uid = pwd.getpwnam(product.server_user()[0]).pw_uid
    wrap = ["unshare", "-m", "sh", "-c", SMALL.replace("{uid}", str(uid)), "sh"]
    f = front_of("nginx", wrap=wrap, plan=MEMORY)
    f.server.expect_log(r"tmp-client_body.* failed \(28: No space left on device\)")
    full = r"tmp-wsgi.*( failed \(28: No space left on device\)| has written only )"
    f.server.expect_log(full)
    body = counted.payload("full", 5 << 20)
    assert f.get("/post?id=full", method="POST", body=body).status == 500
    assert f.get("/post?id=small", method="POST", body=body[:60_000]).status == 200
    before = f.workers()
    with http.Connection(f.port) as c:
        c.send(http.build("GET", "/big?id=big&size=64"))
        f.server.log.wait(full)
        r = c.response()
        assert not r.complete and len(r.body) < 64 << 20, "cut, and not ended"
    wait_until(lambda: all((w["sent"], w["running"]) == (0, 0) for w in f.server.workers()), 10, "the thread is free")
    assert f.workers() == before and "full" not in counted.begun(f.ids)
    for name in ("client_body", "wsgi"):
        where = f"{f.server.prefix}/tmp-{name}"
        command = ["nsenter", "-m", "-t", str(f.server.pid), "mount", "-o", "remount,size=200m", where]
        subprocess.run(command, check=True)
    assert f.get("/post?id=room", method="POST", body=body).status == 200
    with f.load("room") as load:
        load.more(200)
    counted.tally(load.results, f.ids).clean()
