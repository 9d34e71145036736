"""W11: clients that leave, at every point of a request: what waits is recalled, what runs is told, nothing leaks."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from harness import http, procs
from harness.apache import Apache
from harness.notes import noted, notes
from harness.server import running
from harness.wait import wait_until

CONFIG = """
WSGIDaemonProcess main processes=1 threads=1
WSGIDaemonProcess many processes=2 threads=4
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /many {apps}/leaving.wsgi process-group=many
WSGIScriptAlias /streamed {apps}/leaving.wsgi process-group=many request-buffering=off
WSGIScriptAlias / {apps}/leaving.wsgi process-group=main
"""


@pytest.fixture(scope="module", params=["event", "prefork"])
def server(request: pytest.FixtureRequest) -> Iterator[Apache]:
    with running(Apache(CONFIG, mpm=request.param)) as apache:
        yield apache


@pytest.fixture(autouse=True)
def _fresh(server: Apache) -> None:
    for name in ("notes", "gate"):
        (server.scratch / name).unlink(missing_ok=True)


def rows(server: Apache, group: str) -> tuple[int, int]:
    """Rows sent and not begun, rows running, of a group's workers."""
    workers = server.workers(group)
    return sum(w["sent"] for w in workers), sum(w["running"] for w in workers)


def becomes(server: Apache, group: str, want: tuple[int, int], deadline: float = 10) -> None:
    wait_until(lambda: rows(server, group) == want, deadline, f"rows of {group} are {want}", interval=0.05)


def leave(server: Apache, head: bytes) -> None:
    with http.Connection(server.port) as c:
        c.send(head)


def test_before_and_in_the_body(server: Apache) -> None:
    """W11: of a request whose body never comes whole the application hears nothing."""
    head = http.build("POST", "/hold?incomplete", [("Content-Length", "100000")])
    leave(server, head)
    leave(server, head + b"some of it")
    leave(server, http.build("POST", "/hold?incomplete", [("Transfer-Encoding", "chunked")]) + b"5\r\nabcde\r\n")
    assert server.get("/read", method="POST", body=b"abc").text == "3"
    assert notes(server) == []
    becomes(server, "main", (0, 0))


def test_a_waiting_request_is_recalled(server: Apache) -> None:
    """W11: a request that no thread has begun is taken back at once when its client leaves, and never runs."""
    with server.connect() as first:
        first.send(http.build("GET", "/hold?first"))
        noted(server, "first runs")
        second = server.connect()
        second.send(http.build("GET", "/hold?second"))
        becomes(server, "main", (1, 1))
        second.close()
        becomes(server, "main", (0, 1), 2)
        (server.scratch / "gate").touch()
        assert first.response().text == "held"
    assert server.get("/hold?third").text == "held"
    assert [n for n in notes(server) if n.startswith("second")] == []
    becomes(server, "main", (0, 0))


def test_before_the_head(server: Apache) -> None:
    """W11: an application that computes keeps its row until it returns; its iterable is closed, the next is served."""
    c = server.connect()
    c.send(http.build("GET", "/hold?computes"))
    noted(server, "computes runs")
    c.close()
    # whoever asks now waits for the thread: the row has not been given away
    with server.connect() as other:
        other.send(http.build("GET", "/hold?other"))
        becomes(server, "main", (1, 1))
        assert "computes closed" not in notes(server) and "other runs" not in notes(server)
        (server.scratch / "gate").touch()
        assert other.response().text == "held"
    noted(server, "computes closed")
    becomes(server, "main", (0, 0))


@pytest.mark.parametrize("how", ["stream", "writing"])
def test_in_the_answer(server: Apache, how: str) -> None:
    """W11: an application that sends is told at its next yield or write(); close() runs."""
    with http.Connection(server.port) as c:
        c.send(http.build("GET", f"/{how}?{how}"))
        assert c.head().status == 200
        assert c.read_chunk()
    noted(server, f"{how} closed" if how == "stream" else f"{how} OSError 32")
    becomes(server, "main", (0, 0))


def test_half_closed_in_the_answer(server: Apache) -> None:
    """W11: a client that reads nothing and closes its direction has left, although its socket takes no bytes."""
    before = temporary_files(server)
    with http.Connection(server.port) as c:
        c.send(http.build("GET", "/stream?stalled"))
        wait_until(lambda: temporary_files(server) > before, 20, "the answer is kept for a slow client")
        c.sock.shutdown(socket.SHUT_WR)
        noted(server, "stalled closed")
    becomes(server, "main", (0, 0))


def storm(server: Apache, total: int) -> None:
    """`total` requests whose clients leave at a random point."""
    seed = random.randrange(1 << 30)

    def one(rng: random.Random) -> None:
        where = rng.choice(["/many", "/streamed"])
        kind = rng.randrange(6)
        body = rng.choice([10, 5000, 100_000])
        fields = rng.choice([[("Content-Length", str(body))], [("Transfer-Encoding", "chunked")]])
        chunked = fields[0][0] == "Transfer-Encoding"
        whole = http.chunked(b"z" * body) if chunked else b"z" * body
        with http.Connection(server.port) as c:
            kinds[kind] += 1
            if kind == 0:  # in the head
                c.send(b"GET /many/brief HTTP/1.1\r\nHos")
            elif kind == 1:  # before the body
                c.send(http.build("POST", where + "/read", fields))
            elif kind == 2:  # in the body
                c.send(http.build("POST", where + "/read", fields) + whole[: rng.randrange(1, len(whole))])
            elif kind == 3:  # before the head of the answer, or thereabouts
                c.send(http.build("POST", where + rng.choice(["/read", "/brief"]), fields) + whole)
            elif kind == 4:  # in the answer
                c.send(http.build("GET", where + "/stream"))
                assert c.sock.recv(rng.choice([1, 500, 5000]))
            else:  # not at all
                r = c.request("GET", where + "/brief")
                assert r.complete and len(r.body) == 600_000, f"seed {seed}"
            if rng.random() < 0.3:
                c.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER 0: a reset instead of an orderly end

    failures: list[BaseException] = []
    kinds = [0] * 6

    def client(number: int) -> None:
        rng = random.Random(seed + number)
        for _ in range(total // 8):
            try:
                one(rng)
            except BaseException as e:
                failures.append(e)
                return

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures, failures
    assert min(kinds) > total // 20, kinds


def resources(server: Apache) -> dict[str, int]:
    """Descriptors, threads and memory (KiB) of the workers."""
    found = {"descriptors": 0, "threads": 0, "memory": 0}
    for w in server.workers("many"):
        found["descriptors"] += procs.descriptors(w["pid"])
        found["threads"] += procs.threads(w["pid"])
        found["memory"] += procs.memory_kib(w["pid"])
    assert found["threads"] >= 8
    return found


def check_storm(server: Apache, total: int) -> None:
    server.allow_log(r"MWR0430: exception OSError|Traceback|\]  +|OSError: \[Errno 5\]|MWR0421|AH\d{5}|MWR0205")
    storm(server, max(total // 10, 80))
    becomes(server, "many", (0, 0), 20)
    before = resources(server)
    files = temporary_files(server)
    idle = supervisors(server) + 4
    storm(server, total)
    becomes(server, "many", (0, 0), 20)
    wait_until(lambda: temporary_files(server) <= files, 20, "no temporary file is left")
    wait_until(
        lambda: resources(server)["descriptors"] <= before["descriptors"] + 24,
        20,
        f"descriptors as before: {before}",
    )
    after = resources(server)
    assert after["threads"] == before["threads"]
    wait_until(lambda: supervisors(server) <= idle, 20, f"supervisor as before: {idle}")
    assert after["memory"] <= before["memory"] + 2 * 3000, (before, after)
    assert server.get("/many/read", method="POST", body=b"abc").text == "3"


def supervisors(server: Apache) -> int:
    """Descriptors of the supervisor, less two (connection, pidfd) for each process of the server: those come and go."""
    all_of_them = sum(procs.descriptors(p.pid) for p in server.helpers("supervise") if p.alive())
    return all_of_them - 2 * len(server.server_processes())


def temporary_files(server: Apache) -> int:
    """Unlinked files in the temporary directory that any process of the server holds open."""
    return sum(procs.open_files(p.pid, "/var/tmp/") for p in server.processes() if p.alive())


def test_at_any_point(server: Apache) -> None:
    """W11: 800 clients leave at random points; rows, descriptors, threads, files and memory are as before."""
    check_storm(server, 800)


@pytest.mark.long
def test_at_any_point_ten_thousand_times(server: Apache) -> None:
    """W11: the same 10,000 times."""
    check_storm(server, 10_000)


def test_a_held_group_does_not_hold_others(apache: Callable[..., Apache]) -> None:
    """W11: clients that leave a stuck group free its rows for those that stay: nobody is refused."""
    server = apache(CONFIG.replace("processes=1 threads=1", "processes=1 threads=1 queue-limit=3"))
    with server.connect() as first:
        first.send(http.build("GET", "/hold?first"))
        noted(server, "first runs")
        for _ in range(10):
            waiting = [server.connect() for _ in range(3)]
            for c in waiting:
                c.send(http.build("GET", "/hold"))
            becomes(server, "main", (3, 1))
            for c in waiting:
                c.close()
            becomes(server, "main", (0, 1), 2)
        (server.scratch / "gate").touch()
        assert first.response().text == "held"


@pytest.mark.parametrize("buffering", ["on", "off"])
def test_a_full_group_asks_for_no_body(apache: Callable[..., Apache], buffering: str) -> None:
    """W4, W5, DESIGN 4.1: a full group refuses an upload before it reads a byte of it, and before `100 Continue`; the
    client need not send it for the sake of the connection."""
    options = f"processes=1 threads=1 queue-limit=1 request-buffering={buffering}"
    server = apache(CONFIG.replace("processes=1 threads=1", options))
    server.expect_log("MWR0205")
    with server.connect() as first, server.connect() as second, server.connect() as c:
        first.send(http.build("GET", "/hold?first"))
        noted(server, "first runs")
        second.send(http.build("GET", "/hold?second"))
        becomes(server, "main", (1, 1))
        c.send(http.build("POST", "/hold", [("Content-Length", "100000"), ("Expect", "100-continue")]))
        r = c.head()
        assert (r.status, r.interim, r.header("Connection")) == (503, [], "close")
        (server.scratch / "gate").touch()
        assert first.response().text == second.response().text == "held"


def test_an_upload_that_waits_too_long(apache: Callable[..., Apache]) -> None:
    """W5: a streamed upload whose turn does not come is refused without a byte of it; its connection ends, for the
    client would have to send it all."""
    options = "processes=1 threads=1 queue-timeout=1 request-buffering=off"
    server = apache(CONFIG.replace("processes=1 threads=1", options))
    server.expect_log("MWR0206")
    with server.connect() as first, server.connect() as c:
        first.send(http.build("GET", "/hold?first"))
        noted(server, "first runs")
        c.send(http.build("POST", "/hold", [("Content-Length", "100000")]))
        r = c.head()
        assert (r.status, r.header("Connection")) == (504, "close")
        (server.scratch / "gate").touch()
        assert first.response().text == "held"
