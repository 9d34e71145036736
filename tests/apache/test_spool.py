"""W4: temporary files of request bodies and answers: bounded in all, honest when there is no room, nothing lost."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from harness import http
from harness.apache import Apache
from harness.notes import notes
from harness.wait import wait_until

CONFIG = """
WSGIDaemonProcess main processes=1 threads=8
WSGIProcessGroup main
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias / {apps}/spool.wsgi
"""
MPMS = pytest.mark.parametrize("mpm", ["event", "prefork"])
LARGE = 300  # blocks of 64 KiB: more than the sockets of a connection hold


def expected(blocks: int) -> bytes:
    return b"".join(b"%065536d" % i for i in range(blocks))


@contextlib.contextmanager
def small_disk(path: pathlib.Path, size: str) -> Iterator[None]:
    """A file system of its own at `path`."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", str(path)])
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def on_small_disk(apache: Callable[..., Apache]) -> Iterator[Callable[..., Apache]]:
    """Makes a server whose temporary files have 4 MiB."""
    with contextlib.ExitStack() as stack:

        def make(mpm: str, extra: str = "") -> Apache:
            server = apache(start=False, mpm=mpm)
            disk = server.prefix / "disk"
            stack.enter_context(small_disk(disk, "4m"))
            server.config = f"{CONFIG}WSGISpoolDirectory {disk}\nWSGISpoolLimit 1G\n{extra}"
            return server.start()

        yield make


@pytest.mark.root
@MPMS
def test_disk_full_for_a_request_body(on_small_disk: Callable[..., Apache], mpm: str) -> None:
    """W4: 503 with Retry-After and a log line, the application does not run; smaller bodies are served, and all when
    there is room again."""
    server = on_small_disk(mpm)
    server.expect_log("MWR0214: request body cannot be stored: No space left")
    body = b"x" * 6_000_000
    for how in ([], [("Transfer-Encoding", "chunked")]):
        with server.connect() as c:
            c.send(http.build("POST", "/count", how or [("Content-Length", str(len(body)))]))
            with contextlib.suppress(ConnectionError):
                c.send(http.chunked(body) if how else body)
            r = c.response()
        assert r.status == 503 and r.header("Retry-After") == "30"
    assert notes(server) == []
    assert server.get("/count", method="POST", body=b"y" * 3_000_000).text == "3000000"
    assert server.get("/count", method="POST", body=b"y" * 60_000).text == "60000"


@pytest.mark.root
@MPMS
def test_disk_full_for_an_answer(on_small_disk: Callable[..., Apache], mpm: str) -> None:
    """W4: an answer that cannot be kept for its slow client goes at the client's pace, whole."""
    server = on_small_disk(mpm)
    server.expect_log("MWR0217: no room to keep the answer")
    with server.connect() as c:
        c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        c.send(http.build("GET", f"/large?{LARGE}"))
        server.log.wait("MWR0217")
        assert f"large {LARGE}" not in notes(server), "the worker waits"
        r = c.response()
    assert r.complete and r.body == expected(LARGE)


@MPMS
def test_the_limit_for_all(apache: Callable[..., Apache], mpm: str) -> None:
    """W4: all processes together hold no more than WSGISpoolLimit; a body that is known not to fit is refused before
    it is asked for; what is freed can be used again."""
    server = apache(CONFIG + "WSGISpoolLimit 4M\n", mpm=mpm)
    server.expect_log("MWR0214: request body cannot be stored: temporary files of the server hold all of the 4194304")
    body = b"x" * 2_500_000
    with server.connect() as holder, server.connect() as other:
        holder.send(http.build("POST", "/gated", body=body))
        wait_until(lambda: "gated" in notes(server), 10, "the first body is held")
        # on whichever process: all of them know
        for _ in range(10):
            r = server.get("/count", method="POST", headers=[("Expect", "100-continue")], body=body)
            assert r.status == 503 and r.interim == [] and r.header("Retry-After") == "30"
        r = server.get("/count", method="POST", headers=[("Transfer-Encoding", "chunked")], body=http.chunked(body))
        assert r.status == 503
        assert other.request("POST", "/count", body=b"x" * 1_000_000).text == "1000000"
        (server.scratch / "gate").touch()
        assert holder.response().text == "2500000"
    for _ in range(10):
        assert server.get("/count", method="POST", body=body).text == "2500000"


def test_a_killed_process_gives_back(apache: Callable[..., Apache]) -> None:
    """W4: the bytes that a killed server process held can be used again."""
    server = apache(CONFIG + "WSGISpoolLimit 4M\n")
    server.allow_log(r"AH00052|MWR0207")
    body = b"x" * 2_500_000
    before = {p.pid: p for p in server.server_processes()}
    with server.connect() as holder:
        holder.send(http.build("POST", "/gated", body=body))
        wait_until(lambda: "gated" in notes(server), 10, "the first body is held")
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        (server.scratch / "gate").touch()
        wait_until(lambda: not any(p.alive() for p in before.values()), 10, "the processes have ended")

    def served() -> bool:
        try:
            return server.get("/count", method="POST", body=body).text == "2500000"
        except OSError:
            # no new process yet
            return False

    wait_until(served, 10, "a large body is served again")


@MPMS
def test_many_slow_readers_over_the_limit(apache: Callable[..., Apache], mpm: str) -> None:
    """W4, W8: more slow readers than there is room for: each gets its answer whole, none waits for ever."""
    server = apache(CONFIG + "WSGISpoolLimit 8M\n", mpm=mpm)
    server.expect_log("MWR0217: no room to keep the answer")
    results: list[bool] = []

    def reader() -> None:
        with server.connect() as c:
            c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            c.send(http.build("GET", f"/large?{LARGE}"))
            go.wait(30)
            r = c.response()
            results.append(r.complete and r.body == expected(LARGE))

    go = threading.Event()
    threads = [threading.Thread(target=reader) for _ in range(6)]
    for t in threads:
        t.start()
    try:
        server.log.wait("MWR0217")
    finally:
        go.set()
    for t in threads:
        t.join(60)
    assert results == [True] * 6
    # nothing stays reserved
    assert server.get("/count", method="POST", body=b"x" * 7_000_000).text == "7000000"
