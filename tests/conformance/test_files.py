"""W10, N10: wsgi.file_wrapper. Regular files go to the server by descriptor, everything else is read in blocks; what
happens to a file meanwhile is never the server's undoing, and a cut is always visible."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator

import pytest

from harness import http, kinds, log, product
from harness.apache import Apache
from harness.nginx import Nginx
from harness.server import Server, running
from harness.wait import wait_until

APACHE = """
WSGIDaemonProcess g processes=1 threads=8
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /off {apps}/files.wsgi
WSGIScriptAlias /on {apps}/files.wsgi
<Location /off>
EnableSendfile Off
</Location>
<Location /on>
EnableSendfile On
</Location>
"""
NGINX = """
wsgi_process_group g;
location /off { wsgi_script {apps}/files.wsgi mount=/off; }
location /on { wsgi_script {apps}/files.wsgi mount=/on; sendfile on; }
"""
#: nginx's ways of reading files, and of passing answers on
VARIANTS = {
    "nginx": "",
    "nginx-directio": "directio 4k;",
    "nginx-threads": "aio threads;",
    "nginx-unbuffered": "wsgi_buffering off;",
}
ALL = ["event", "worker", "prefork", *(VARIANTS if "nginx" in kinds.KINDS else [])]
DATA = random.Random(10).randbytes(300_007)
#: too large for the sockets' buffers
LARGE = 40_000_000


@pytest.fixture(scope="module", params=ALL)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    kind = request.param
    made: Server = (
        Nginx(VARIANTS[kind] + NGINX, http_config="wsgi_daemon_process g processes=1 threads=8;")
        if kind in VARIANTS
        else Apache(APACHE, mpm=kind)
    )
    (made.scratch / "data").write_bytes(DATA)
    (made.scratch / "data.gz").write_bytes(gzip.compress(DATA, 1))
    (made.scratch / "data.bz2").write_bytes(bz2.compress(DATA, 1))
    (made.scratch / "empty").touch()
    with running(made) as live:
        yield live


@pytest.fixture(params=["off", "on"])
def mount(request: pytest.FixtureRequest) -> str:
    """sendfile off and on."""
    return f"/{request.param}"


def name_of(server: Server) -> str:
    """The kind of server, for names that must differ."""
    return server.mpm if isinstance(server, Apache) else server.NAME


def allow_break(server: Server) -> None:
    server.allow_log(log.CUT)
    # nginx's own word of it
    server.allow_log(r"was truncated at|pread\(\) read only")


def own(path: pathlib.Path) -> pathlib.Path:
    """Lets the applications change a file of the tests."""
    path.chmod(0o666)
    return path


SAME = [
    ("plain/x", DATA),
    ("unbuffered/x", DATA),
    ("pipe/x", DATA),
    ("nofileno/x", DATA),
    ("tempfile/x", DATA),
    ("spooled/x", DATA),
    ("twice/x", DATA),
    ("plain-subclass/x", DATA),
    ("subclass/x", DATA.upper()),
    ("generator/x", DATA.lower()),
    ("written/x", b"written first," + DATA),
]


@pytest.mark.parametrize(("how", "expected"), SAME, ids=[h for h, _ in SAME])
def test_forms(server: Server, mount: str, how: str, expected: bytes) -> None:
    """W10: a file, with and without Python's buffer; a pipe; other file-likes; a subclass; a wrapper inside another
    iterable; a file after write(). The next answer on the connection is intact."""
    if name_of(server) == "nginx":
        # a HEAD is over with its head: whoever fills a pipe for its body finds it closed
        server.allow_log(r"Exception in thread|\] Traceback|\]   |During handling|BrokenPipeError")
    with server.connect() as c:
        r = c.request(target=f"{mount}/{how}?name=data")
        assert r.status == 200 and r.complete and r.body == expected
        r = c.request("HEAD", f"{mount}/{how}?name=data")
        assert r.status == 200 and r.body == b""
        assert c.request(target=f"{mount}/plain?name=data&length=5").body == DATA[:5]


@pytest.mark.parametrize("how", ["plain", "unbuffered", "update"])
def test_position(server: Server, mount: str, how: str) -> None:
    """W10: from the current position, also where Python has read ahead; the length is what is left."""
    own(server.scratch / "data")
    for query, start in (("seek=1000", 1000), ("readfirst=10", 10), ("seek=5&readfirst=100000", 100_005)):
        r = server.get(f"{mount}/{how}?name=data&{query}")
        assert r.complete and r.body == DATA[start:] and r.header("Content-Length") == str(len(DATA) - start)
    assert server.get(f"{mount}/{how}?name=data&seek={len(DATA)}").body == b""
    assert server.get(f"{mount}/{how}?name=data&seek=999999999").body == b""


def test_length(server: Server, mount: str) -> None:
    """W7, W10: a Content-Length of the application bounds the file; one beyond its end is a visible cut."""
    with server.connect() as c:
        for n in (0, 1, 8192, 100_000, len(DATA) - 7):
            r = c.request(target=f"{mount}/plain?name=data&seek=7&length={n}")
            assert (r.body, r.header("Content-Length")) == (DATA[7 : 7 + n], str(n)) and r.complete
    for n in (5, 8192, 100_000):
        # a part of what is read in blocks: no more is read than that
        r = server.get(f"{mount}/bytesio/x?name=data&length={n}&tag=part-{n}{mount[1:]}{name_of(server)}")
        assert r.complete and r.body == DATA[:n]
        if product.is_ours():
            reads = [x.split() for x in (server.scratch / "reads").read_text().splitlines()]
            assert sum(int(x[2]) for x in reads if x[0] == f"part-{n}{mount[1:]}{name_of(server)}") < n + 8192
    if product.is_ours():
        server.expect_log("MWR02")
        r = server.get(f"{mount}/plain?name=data&length=400000")
        assert r.truncated or r.status >= 500


def test_empty(server: Server, mount: str) -> None:
    """W10: an empty file."""
    with server.connect() as c:
        for _ in range(2):
            r = c.request(target=f"{mount}/plain?name=empty")
            assert (r.status, r.body, r.complete) == (200, b"", True)


@pytest.mark.ours
@pytest.mark.parametrize("kind", ["gzip?name=data.gz", "bz2?name=data.bz2"])
def test_files_that_translate(server: Server, kind: str) -> None:
    """W10: a compressed file that Python opens gives what its read() gives, not what lies on the disk."""
    r = server.get(f"/off/{kind.replace('?', '/x?')}")
    assert r.complete and r.body == DATA


@pytest.mark.parametrize("how", ["noting", "bytesio", "notell"])
@pytest.mark.parametrize("block", [1000, 65536])
def test_close_once_and_blocks(server: Server, how: str, block: int) -> None:
    """W6, W10: close() runs once, after the body; what is no regular file is read by the block size, to its end."""
    tag = f"{how}-{block}-{name_of(server)}"
    r = server.get(f"/off/{how}/x?name=data&block={block}&tag={tag}")
    assert r.complete and r.body == DATA
    closed, reads = server.scratch / "closed", server.scratch / "reads"
    wait_until(lambda: closed.exists() and tag in closed.read_text().split(), what="close()")
    got = (
        [line.split() for line in reads.read_text().splitlines() if line.startswith(tag + " ")]
        if reads.exists()
        else []
    )
    if how == "noting":
        # a regular file with a position, whatever wraps it: Python reads none of it
        assert not got or not product.is_ours()
    else:
        assert {n for _, n, _ in got} == {str(block)} and sum(int(n) for _, _, n in got) == len(DATA)
        assert got[-1][2] == "0"
    assert server.get("/off/plain?name=data").complete
    assert closed.read_text().split().count(tag) == 1


def read_chars(pid: int) -> int:
    text = pathlib.Path(f"/proc/{pid}/io").read_text()
    return int(re.search(r"^rchar: (\d+)$", text, re.M)[1])


@contextlib.contextmanager
def large(server: Server, name: str) -> Iterator[pathlib.Path]:
    path = server.scratch / name
    path.write_bytes(DATA * (LARGE // len(DATA) + 1))
    try:
        yield own(path)
    finally:
        path.unlink(missing_ok=True)


@pytest.mark.ours
def test_python_does_not_read_it(server: Server, mount: str) -> None:
    """W10: a regular file goes to httpd by its descriptor: the worker reads (next to) nothing."""
    with large(server, "untouched") as path:
        server.get(f"{mount}/plain?name=data")
        servers = {p.pid for p in server.server_processes()} | {server.pid}
        python = [p for p in server.processes() if p.pid not in servers]
        before = {p: read_chars(p.pid) for p in python}
        r = server.get(f"{mount}/plain?name={path.name}")
        assert r.complete and len(r.body) == path.stat().st_size
        spent = {p: read_chars(p.pid) - n for p, n in before.items() if p.alive()}
        assert spent and max(spent.values()) < 1_000_000, spent


@pytest.mark.ours
def test_system_calls(server: Server) -> None:
    """W10: sendfile where EnableSendfile is on, reads where it is off; the file is never mapped."""
    strace = shutil.which("strace")
    if not strace or not product.IS_ROOT:
        pytest.skip("needs strace and root")
    with large(server, "traced") as path, tempfile.TemporaryDirectory() as d:
        log = pathlib.Path(d) / "trace"
        pids = ",".join(str(p.pid) for p in server.server_processes())
        tracer = subprocess.Popen(
            [strace, "-f", "-y", "-o", str(log), "-e", "trace=sendfile,mmap", "-p", pids],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert tracer.stderr
            first = tracer.stderr.readline()
            if "ttached" not in first:
                pytest.skip(f"strace cannot attach: {first.strip()}")
            seen = {}
            for mount in ("/off", "/on"):
                offset = log.stat().st_size if log.exists() else 0
                r = server.get(f"{mount}/plain?name={path.name}")
                assert r.complete and len(r.body) == path.stat().st_size
                if mount == "/on":
                    wait_until(lambda: "sendfile" in log.read_text(), what="sendfile in the trace")
                seen[mount] = log.read_text()[offset:]
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(10)
            tracer.stderr.close()
        assert f"/{path.name}>" in seen["/on"] and "sendfile(" in seen["/on"]
        assert "sendfile(" not in seen["/off"]
        for text in seen.values():
            assert not [line for line in text.splitlines() if "mmap" in line and path.name in line]


# --- what may happen to a file meanwhile


def test_deleted(server: Server, mount: str) -> None:
    """W10: a file that is gone from its directory before it is sent."""
    path = server.scratch / f"deleted-{mount[1:]}"
    path.write_bytes(DATA)
    server.scratch.chmod(0o777)
    try:
        r = server.get(f"{mount}/deleted/x?name={path.name}")
        assert r.complete and r.body == DATA and not path.exists()
    finally:
        server.scratch.chmod(0o1777)


def test_growing(server: Server, mount: str) -> None:
    """W10: a file that grows meanwhile: the answer is as long as its head says, and the connection stays in step."""
    path = server.scratch / f"grow-{mount[1:]}"
    path.write_bytes(DATA)
    own(path)
    with server.connect() as c:
        r = c.request(target=f"{mount}/grow/x?name={path.name}")
        assert r.complete and r.body[: len(DATA)] == DATA and len(r.body) <= len(DATA) + 100_000
        assert c.request(target=f"{mount}/plain?name=data&length=5").body == DATA[:5]


@pytest.mark.parametrize("to", [0, 10, 100_000])
def test_shorter_before(server: Server, mount: str, to: int) -> None:
    """W10: a file that became shorter before it is sent is as long as it is now."""
    path = server.scratch / f"shrink-{mount[1:]}"
    path.write_bytes(DATA)
    own(path)
    r = server.get(f"{mount}/shrink/x?name={path.name}&to={to}")
    assert r.complete and r.body == DATA[:to]


@pytest.mark.ours
def test_shorter_meanwhile(server: Server, mount: str) -> None:
    """W8, W10, pitfall H16: a file that is truncated while a client reads it: the client sees a cut, nobody dies."""
    allow_break(server)
    before = {p.pid for p in server.server_processes()} | {p.pid for p in server.processes()}
    with large(server, "truncated") as path, server.connect() as c:
        size = path.stat().st_size
        c.send(http.build(target=f"{mount}/plain?name={path.name}"))
        r = c.head()
        assert r.header("Content-Length") == str(size)
        assert c._take(100_000)
        os.truncate(path, 200_000)
        r = c.body(r)
        assert r.truncated and len(r.body) < size
    assert server.get(f"{mount}/plain?name=data").body == DATA
    server.log.poll()
    assert not server.log.find("exit signal|Bus error|SIGBUS")
    after = {p.pid for p in server.processes()}
    assert before & after, "nobody is left of those that served"


@pytest.mark.ours
@pytest.mark.parametrize("path", ["/proc/self/status", "/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"])
def test_files_of_the_kernel(server: Server, mount: str, path: str) -> None:
    """W10: files whose size says nothing of their content."""
    if not os.path.exists(path):
        pytest.skip(f"no {path}")
    r = server.get(f"{mount}/plain?path={path}")
    assert r.complete and r.body
    if path != "/proc/self/status":
        assert r.body == pathlib.Path(path).read_bytes()


@pytest.mark.ours
def test_end_of_a_huge_file(server: Server, mount: str) -> None:
    """W10: offsets and lengths beyond 4 GiB."""
    path = server.scratch / "huge"
    with open(path, "wb") as f:
        f.truncate(5 << 30)
        f.seek((5 << 30) - 4)
        f.write(b"tail")
    try:
        r = server.get(f"{mount}/plain?name=huge&seek={(5 << 30) - 10}")
        assert r.body == b"\0" * 6 + b"tail"
        if name_of(server) != "nginx":
            # nginx makes ranges of an application's answer only where it is told to
            r = server.get(f"{mount}/plain?name=huge", headers=[("Range", "bytes=-4")])
            assert (r.status, r.body) == (206, b"tail")
        r = server.get(f"{mount}/plain?name=huge&seek=100", method="HEAD")
        assert r.header("Content-Length") == str((5 << 30) - 100)
    finally:
        path.unlink()


def test_one_file_in_many_answers(server: Server, mount: str) -> None:
    """W10, pitfall S11: answers made at the same time from one open file: each is whole, whoever reads slowly."""
    with large(server, "kept") as path:
        size = path.stat().st_size
        slow = [server.connect() for _ in range(2)]
        try:
            for c in slow:
                c.send(http.build(target=f"{mount}/kept/x?name=kept&seek=0&tag={mount[1:]}"))
                assert c.head().header("Content-Length") in (str(size), None)
            results: list[int] = []

            def fetch() -> None:
                r = server.get(f"{mount}/kept/x?name=kept&seek=0")
                results.append(len(r.body) if r.complete and r.body == path.read_bytes() else -1)

            threads = [threading.Thread(target=fetch) for _ in range(3)]
            for t in threads:
                t.start()
            for t in threads:
                t.join(60)
            if product.is_ours():
                assert results == [size] * 3
        finally:
            for c in slow:
                c.close()


def test_fuse(server: Server, mount: str) -> None:
    """W10, pitfall S12: a file on FUSE is read by the worker, never by httpd."""
    bindfs = shutil.which("bindfs")
    if not bindfs or not product.IS_ROOT:
        pytest.skip("needs bindfs and root for a FUSE file system")
    where = server.prefix / "fuse"
    where.mkdir(exist_ok=True)
    done = subprocess.run(
        [bindfs, "-o", "allow_other", str(server.scratch), str(where)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no FUSE here: {done.stderr.strip()}")
    try:
        r = server.get(f"{mount}/plain?path={where}/data")
        assert r.complete and r.body == DATA
        for n in (50, 8192, 8193, 100_000):
            r = server.get(f"{mount}/plain?path={where}/data&seek=1000&length={n}")
            assert r.complete and r.body == DATA[1000 : 1000 + n]
    finally:
        subprocess.run(["umount", str(where)], check=True)
