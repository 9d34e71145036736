"""F12, S12: descriptors that a worker passes to the server. On a FUSE file system whose daemon answers nobody even `fstat`
and `close` wait for ever: no process of the server may."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from harness import procs
from harness.fake import DATA, DONE, END, FILE, FakeWorker, Play, frame, read_frame, response, worker_sockets
from harness.fuse import fuse
from harness.plan import Plan, Script
from harness.server import Server
from harness.wait import wait_until

pytestmark = [pytest.mark.ours, pytest.mark.root]

PLAN = Plan(
    "processes=1 threads=40",
    "conform.wsgi",
    files={"/static/": "{prefix}/htdocs"},
    settings={"reload_on_restart": "on"},
)
ROOM = {"prefork": "StartServers 2\nMinSpareServers 1\nMaxSpareServers 2\nServerLimit 2\nMaxRequestWorkers 2"}


@contextlib.contextmanager
def given(kind: str, scratch: pathlib.Path) -> Iterator[int]:
    """A descriptor of that kind. Those on FUSE cannot be used while it lasts."""
    with contextlib.ExitStack() as stack:
        path = scratch / "file"
        path.write_bytes(b"0123456789")
        if kind.startswith("fuse"):
            f = stack.enter_context(fuse())
            (f.real / "file").write_bytes(b"0123456789")
            fd = os.open(f.where / "file", os.O_PATH if kind == "fuse-path" else os.O_RDONLY)
            stack.callback(os.close, fd)
            f.halt()
            stack.callback(f.go_on)
        elif kind == "socket":
            ours, theirs = socket.socketpair()
            stack.callback(ours.close)
            stack.callback(theirs.close)
            fd = theirs.fileno()
        elif kind == "pipe":
            fd, other = os.pipe()
            stack.callback(os.close, fd)
            stack.callback(os.close, other)
        else:
            flags = {"directory": os.O_DIRECTORY, "path": os.O_PATH, "write": os.O_WRONLY}.get(kind, os.O_RDONLY)
            fd = os.open("/dev/zero" if kind == "device" else scratch if kind == "directory" else path, flags)
            stack.callback(os.close, fd)
        yield fd


KINDS = ["fuse", "fuse-stray", "fuse-path", "socket", "device", "pipe", "directory", "path", "write", "short", "good"]
#: of a request that has a connection of its own everywhere: it is too large for a lane
OWN = {"method": "POST", "body": b"b" * 20_000}
#: what may not even be closed: it stays open
KEPT = ("fuse", "fuse-stray", "socket", "device")


def passing(kind: str, fd: int) -> Play:
    """A play: an answer whose body is the descriptor, with a FILE or with something else."""

    def play(fake: FakeWorker, s: socket.socket) -> None:
        read_frame(s)
        s.sendall(fake.hello)
        read_frame(s)
        size = 20 if kind == "short" else 10
        s.sendall(response(fields=((b"Content-Length", b"%d" % size),)))
        if kind == "fuse-stray":
            socket.send_fds(s, [frame(DATA, b"0123456789")], [fd])
            s.sendall(frame(END) + frame(DONE))
        else:
            socket.send_fds(s, [frame(FILE, struct.pack("<QQ", 0, size), flags=1)], [fd])
            s.sendall(frame(DONE))

    return play


@pytest.mark.on("prefork", "nginx")
@pytest.mark.everywhere
@pytest.mark.parametrize("kind", KINDS)
def test_f12_descriptors(serve, kind: str) -> None:
    """F12, S12: a worker of another user passes a file of FUSE whose daemon does not answer, or anything else: it is not taken,
    502 at once, nobody in the server waits, a reload goes on, nothing stays open."""
    server: Server = serve(PLAN.replace(options=f"{PLAN.options} user=games group=games"), room=ROOM)
    with given(kind, server.scratch) as fd:
        before = lie(server, kind, fd)
        for p, held in before.items():
            # connections to the worker come and go
            wait_until(lambda p=p, held=held: procs.descriptors(p.pid) <= held + 3, 10, "none has stayed")
        server.graceful()
        wait_until(lambda: serves(server), 30, "honest workers serve again")
        wait_until(lambda: not any(p.alive() for p in before), 30, "the old processes have gone")
    server.stop()


@pytest.mark.on("prefork", "nginx")
@pytest.mark.parametrize("kind", KINDS)
def test_f12_descriptors_of_the_servers_own_user(serve, kind: str) -> None:
    """F12, S12: the same of a worker of the server's own user: an honest file goes through, of what may not even be closed
    one a process stays open, and nobody waits."""
    server: Server = serve(PLAN, room=ROOM)
    with given(kind, server.scratch) as fd:
        before = lie(server, kind, fd)
        for p, held in before.items():
            allowed = held + 3 + (kind in KEPT)
            wait_until(lambda p=p, allowed=allowed: procs.descriptors(p.pid) <= allowed, 10, "none has piled up")
    server.graceful()
    wait_until(lambda: serves(server), 30, "honest workers serve again")
    server.stop()


def serves(server: Server) -> bool:
    """Whether the application answers."""
    with contextlib.suppress(OSError):
        return server.get("/exact?on", timeout=5).status == 200
    return False


def lie(server: Server, kind: str, fd: int) -> dict[procs.Process, int]:
    """Requests to a worker that passes this; the server's processes, with how many descriptors they had before."""
    (server.prefix / "htdocs" / "s.txt").write_text("static")
    wait_until(lambda: worker_sockets(server), 10, "the worker's socket")
    server.log.allow(r"MWR0[234]\d\d")
    before = {p: procs.descriptors(p.pid) for p in server.server_processes()}
    good = kind == "good" and "user=" not in server.text()
    fake = FakeWorker(worker_sockets(server)[-1], passing(kind, fd))
    try:
        for _ in range(8):
            r = server.get("/exact?lie", timeout=10, **OWN)
            if good:
                assert (r.status, r.body) == (200, b"0123456789")
            else:
                # 503: nothing has run as far as the row tells, and every further try has ended alike; what comes with a
                # frame that is whole without it may be overlooked
                assert r.status in (502, 503) or r.truncated or (kind == "fuse-stray" and r.body == b"0123456789"), r
            assert server.get("/static/s.txt", timeout=10).text == "static"
        assert fake.connections > 0
        assert all(p.alive() for p in before)
    finally:
        fake.close()
    return before


def test_f12_descriptors_for_the_supervisor(serve) -> None:
    """F12: an application passes a file of FUSE whose daemon does not answer over every socket it finds, its own worker's
    connection to the supervisor among them: the supervisor answers, and replaces that worker."""
    server: Server = serve(PLAN.replace(scripts={"/evil": Script("hostile.wsgi")}))
    server.log.allow(r"MWR0[234]\d\d")
    [supervisor] = server.helpers("supervise")
    with fuse() as f:
        (f.real / "file").write_bytes(b"0123456789")
        (server.scratch / "fuse").write_text(str(f.where / "file"))
        before = wait_until(server.ready, 20, "the worker")
        held = procs.descriptors(supervisor.pid)

        def ask() -> None:
            with contextlib.suppress(OSError):
                server.get("/evil/pass_everywhere", timeout=20)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            wait_until(lambda: (server.scratch / "opened").exists(), 20, "the application has the file")
            f.halt()
            (server.scratch / "halted").touch()
            server.log.wait("MWR0310: worker .*; killed")
            wait_until(lambda: server.ready() and not server.ready() & before, 30, "the worker was replaced")
            assert server.get("/exact?on", timeout=20).status == 200
            assert supervisor.alive() and procs.descriptors(supervisor.pid) <= held + 4
        finally:
            f.go_on()
            asking.join(30)
    server.stop()


@pytest.mark.on("event", "nginx")
@pytest.mark.everywhere
def test_a_file_amid_an_answer(serve, server_kind: str) -> None:
    """A FILE without END, with bytes behind it: httpd passes both on in their order. nginx's buffers could write a file
    that is not the last into another one: there it is refused, and the answer is not taken for whole."""
    server: Server = serve(PLAN)

    def play(fake: FakeWorker, s: socket.socket) -> None:
        read_frame(s)
        s.sendall(fake.hello)
        read_frame(s)
        s.sendall(response())
        socket.send_fds(s, [frame(FILE, struct.pack("<QQ", 0, 10))], [fd])
        s.sendall(frame(DATA, b"more") + frame(END) + frame(DONE))

    with given("good", server.scratch) as fd, contextlib.closing(FakeWorker(worker_sockets(server)[-1], play)) as fake:
        r = server.get("/exact?amid", timeout=10, **OWN)
        assert fake.connections > 0
        if server_kind == "nginx":
            server.expect_log("MWR0208: .*FILE without END")
            assert r.status == 502 or r.truncated, r
        else:
            assert (r.status, r.body, r.complete) == (200, b"0123456789more", True)
    server.graceful()
    wait_until(lambda: serves(server), 30, "honest workers serve again")


@pytest.mark.on("event", "prefork")
@pytest.mark.parametrize(
    ("options", "status"),
    [
        ("", 206),
        ("pass-files=Off", 200),
        ("user=games group=games", 200),
        ("user=games group=games pass-files=On", 206),
    ],
)
def test_who_passes_files(serve, options: str, status: int) -> None:
    """F12: workers of the server's own user pass files, others' bytes, unless told otherwise. httpd makes a range of a
    file, and none of bytes that come one after the other."""
    one = serve(Plan(f"processes=1 threads=2 {options}", "files.wsgi"))
    content = os.urandom(1 << 20)
    (one.scratch / "large").write_bytes(content)
    r = one.get("/plain?name=large", headers=[("Range", "bytes=10-19")])
    assert (r.status, r.body) == (status, content[10:20] if status == 206 else content)
