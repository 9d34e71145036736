"""A worker of the tests' own on the socket of one that is real: it says what a play tells it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable

from .server import Server

VERSION = 2
HELLO, REQUEST, RESPONSE, DATA, FILE, LOG, END, DONE, ABORT, REPLY, ADOPT = 1, 2, 6, 7, 8, 9, 10, 11, 12, 13, 14
F_LANE = 32


def frame(kind: int, payload: bytes = b"", flags: int = 0, length: int | None = None) -> bytes:
    """A frame; `length` may lie."""
    return struct.pack("<IBBH", len(payload) if length is None else length, kind, flags, 0) + payload


def hello(token: bytes = b"\0" * 16, version: int = VERSION) -> bytes:
    """A server's greeting."""
    return frame(HELLO, struct.pack("<HHI", version, 0, 1) + token)


def worker_sockets(server: Server) -> list[str]:
    """Where the workers listen."""
    return [s for s in server.sockets() if "/w/" in s]


_dirs: dict[str, int] = {}


def dirfd(path: str) -> int:
    """The directory of a socket, whose path may be longer than an address holds."""
    where = os.path.dirname(path)
    if where not in _dirs:
        _dirs[where] = os.open(where, os.O_PATH | os.O_DIRECTORY)
    return _dirs[where]


Play = Callable[["FakeWorker", socket.socket], None]


class FakeWorker:
    """Takes the place of a worker's socket and plays a script to every connection that comes."""

    def __init__(self, path: str, play: Play):
        info = os.stat(path)
        os.unlink(path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"/proc/self/fd/{dirfd(path)}/{os.path.basename(path)}")
        os.chown(path, info.st_uid, info.st_gid)
        os.chmod(path, 0o600)
        self.listener.listen(50)
        slot, generation = os.path.basename(path).split(".")
        self.hello = frame(HELLO, struct.pack("<HHI", VERSION, int(slot), int(generation)))
        self.play, self.connections = play, 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            with s, contextlib.suppress(OSError):
                s.settimeout(5)
                self.play(self, s)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


def read_frame(s: socket.socket) -> tuple[int, bytes]:
    """Kind and payload of the next one."""
    kind, payload, _ = read_flagged(s)
    return kind, payload


def read_flagged(s: socket.socket) -> tuple[int, bytes, int]:
    """Kind, payload and flags of the next frame."""
    head = b""
    while len(head) < 8:
        piece = s.recv(8 - len(head))
        if not piece:
            raise ConnectionError
        head += piece
    length, kind, flags, _ = struct.unpack("<IBBH", head)
    payload = b""
    while len(payload) < length:
        piece = s.recv(length - len(payload))
        if not piece:
            raise ConnectionError
        payload += piece
    return kind, payload, flags


def response(
    body: bytes = b"", fields: tuple[tuple[bytes, bytes], ...] = (), status: int = 200, flags: int = 0
) -> bytes:
    """A RESPONSE."""
    head = b"OK" + b"".join(struct.pack("<HI", len(n), len(v)) + n + v for n, v in fields)
    payload = struct.pack("<HHHHI", status, len(fields), 2, 0, len(head)) + head + body
    return frame(RESPONSE, payload, flags)


def answering(data: bytes) -> Play:
    """A play: honest greeting, then these bytes for an answer, in a REPLY where the request came on a lane, then the end."""

    def play(fake: FakeWorker, s: socket.socket) -> None:
        read_frame(s)
        s.sendall(fake.hello)
        _, request, flags = read_flagged(s)
        s.sendall(frame(REPLY, coordinates(request) + data) if flags & F_LANE else data)

    return play


def coordinates(request: bytes) -> bytes:
    """Where the answer to a REQUEST belongs, as REPLY and ADOPT say it."""
    _, row, _, generation = struct.unpack_from("<IHHI", request)
    return struct.pack("<HHI", row, 0, generation)


def riding(speak: Callable[[socket.socket, bytes], None]) -> Play:
    """A play: honest greeting, then what a function says on a lane, given the coordinates of the request, then the end."""

    def play(fake: FakeWorker, s: socket.socket) -> None:
        read_frame(s)
        s.sendall(fake.hello)
        _, request, flags = read_flagged(s)
        # after an answer that needed a connection the next requests get their own
        if flags & F_LANE:
            speak(s, coordinates(request))

    return play


def greeting(data: bytes) -> Play:
    """A play: these bytes for a greeting."""

    def play(fake: FakeWorker, s: socket.socket) -> None:
        read_frame(s)
        s.sendall(data)

    return play
