"""The reckoning itself: a server of a few lines that loses, repeats, garbles and cuts is found out in each."""

from __future__ import annotations

import os
import pathlib
import re
import socketserver
import threading
from collections.abc import Iterator

import pytest

from harness import counted

#: what the server does wrong to every request of that number, modulo ten
WRONGS = {1: "garbled", 2: "dropped", 3: "twice", 4: "cut", 5: "refused", 6: "failed", 7: "short", 8: "not run"}


class Liar(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    notes: pathlib.Path


class Handler(socketserver.StreamRequestHandler):
    server: Liar

    def handle(self) -> None:
        while line := self.rfile.readline():
            length = 0
            while (field := self.rfile.readline().strip()) != b"":
                if field.lower().startswith(b"content-length:"):
                    length = int(field.split(b":")[1])
            self.rfile.read(length)
            name = re.search(rb"id=(\S+?)-(\d+)[& ]", line)
            assert name
            number = int(name[2])
            wrong = WRONGS.get(number % 10, "")
            if not self.answer(name[1].decode() + f"-{number}", number, wrong):
                return

    def answer(self, name: str, number: int, wrong: str) -> bool:
        if wrong not in ("refused", "not run", "dropped"):
            with open(self.server.notes, "a") as f:
                f.write(f"{name} {os.getpid()}\n" * (2 if wrong == "twice" else 1))
        if wrong == "dropped":
            return False
        body = counted.request(name, number, False)[1]
        status = {"refused": "503 No", "failed": "500 No"}.get(wrong, "200 OK")
        if wrong == "garbled":
            body = body[:-1] + b"?"
        if wrong == "short":
            body = body[:-1]
        self.wfile.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        self.wfile.write(body[:-3] if wrong == "cut" else body)
        return wrong != "cut"


@pytest.fixture
def liar(tmp_path: pathlib.Path) -> Iterator[Liar]:
    with Liar(("127.0.0.1", 0), Handler) as server:
        server.notes = tmp_path / "ids"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_every_wrong_is_found(liar: Liar) -> None:
    """Of each kind of wrong every instance is named, and nothing else is."""
    with counted.Counted(liar.server_address[1], "lie", pause=0.001) as load:
        load.more(400)
    t = counted.tally(load.results, liar.notes)

    def numbers(names: list[str]) -> set[int]:
        return {int(n.rpartition("-")[2]) % 10 for n in names}

    kind = {v: k for k, v in WRONGS.items()}
    assert numbers([r.name for r in t.wrong]) == {kind["garbled"], kind["short"], kind["not run"], kind["twice"]}
    assert numbers(t.twice) == {kind["twice"]}
    # nothing had run: on a kept connection browsers would ask again, on a new one it is lost
    assert numbers([r.name for r in t.lost]) == {kind["dropped"], kind["cut"], kind["refused"], kind["failed"]}
    assert t.running == [] and t.sent + t.stale == len(load.results)
    with pytest.raises(AssertionError, match="lost"):
        t.clean(running=1000)
    # the same with the process declared as killed: what it had cut is its own
    t = counted.tally(load.results, liar.notes, [os.getpid()])
    assert numbers([r.name for r in t.running]) == {kind["cut"]}
