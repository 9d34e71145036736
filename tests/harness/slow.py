"""Clients that are slow, by the hundred: readers that take a few bytes at a time, senders that bring them so. In a process
of their own (one thread, epoll)."""

from __future__ import annotations

import json
import pathlib
import selectors
import signal
import socket
import subprocess
import sys
import time

#: what a slow client moves in one turn, and how long its turns are apart
PIECE, TURN = 1024, 0.2
#: between two that come, and how many are let go at full speed at a time: they are to be slow, not a crowd that fills the
#: queue of the group
ARRIVAL, TOGETHER = 0.04, 8
BLOCK = bytes(range(256)) * 1024


class Slow:
    """`with Slow(port, "read", 300, 10):`: readers of 10 MiB each; "send": bodies of 10 MiB each that come slowly. At the
    end (`finish`) every reader takes the rest at full speed and every answer must be whole; `leave` just goes."""

    def __init__(self, port: int, kind: str, clients: int, mebibytes: int):
        self.args = [str(port), kind, str(clients), str(mebibytes)]
        self.clients = clients
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Slow:
        here = pathlib.Path(__file__).resolve().parent.parent
        command = [sys.executable, "-m", "harness.slow", *self.args]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, cwd=here)
        # the line says that all are connected
        assert self._process.stdout and self._process.stdout.readline() == b"ready\n"
        return self

    def finish(self, limit: float = 120) -> list[str]:
        """Everything at full speed; what went wrong, one line a client."""
        assert self._process
        self._process.send_signal(signal.SIGUSR1)
        out, _ = self._process.communicate(timeout=limit)
        return json.loads(out)

    def __exit__(self, *_: object) -> None:
        assert self._process
        self._process.kill()
        self._process.communicate()


class _Client:
    def __init__(self, port: int, number: int, kind: str, size: int):
        self.sock = socket.socket()
        self.kind, self.size, self.name = kind, size, f"{kind}-{number}"
        if kind == "read":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setblocking(False)
        self.head = b""
        self.body = self.sent = 0
        self.wrong = ""
        self.done = self.slow_to_the_end = False
        if kind == "read":
            out = f"GET /big?id={self.name}&size={size >> 20} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        else:
            out = (
                f"POST /post?id={self.name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                f"Content-Length: {size}\r\n\r\n"
            )
        self.sock.sendall(out.encode())

    def read(self, limit: int) -> None:
        try:
            data = self.sock.recv(limit)
        except BlockingIOError:
            return
        except OSError as e:
            self.wrong, self.done = f"{e!r} after {self.body}", True
            return
        if not data:
            self.done = True
            self.judge()
            return
        if b"\r\n\r\n" not in self.head:
            self.head += data
            head, sep, data = self.head.partition(b"\r\n\r\n")
            if not sep:
                return
            self.head = head + sep
            if self.kind == "send":
                self.answer = b""
        if self.kind == "send":
            self.answer += data
            return
        at = self.body % 256
        if data != BLOCK[at : at + len(data)]:
            self.wrong = self.wrong or f"wrong bytes after {self.body}"
        self.body += len(data)

    def judge(self) -> None:
        if not self.head.startswith(b"HTTP/1.1 200 "):
            self.wrong = self.wrong or repr(self.head[:200])
        elif self.kind == "read" and self.body != self.size:
            self.wrong = self.wrong or f"{self.body} bytes of {self.size}"
        elif self.kind == "send" and not self.answer.startswith(b"%d " % self.size):
            self.wrong = self.wrong or repr(self.answer[:200])

    def send(self, limit: int) -> None:
        left = min(self.size - self.sent, limit)
        try:
            self.sent += self.sock.send(BLOCK[:left] if left < len(BLOCK) else BLOCK)
        except BlockingIOError:
            return
        except OSError as e:
            self.wrong, self.done = f"{e!r} after {self.sent}", True


def main() -> None:
    port, kind, count, mebibytes = sys.argv[1:]
    fast: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: fast.append(1))
    clients: list[_Client] = []

    def turn() -> None:
        for c in clients:
            if not c.done:
                c.send(PIECE) if kind == "send" else c.read(PIECE)

    due = time.monotonic()
    for n in range(int(count)):
        clients.append(_Client(int(port), n, kind, int(mebibytes) << 20))
        time.sleep(ARRIVAL)
        if time.monotonic() > due:
            turn()
            due = time.monotonic() + TURN
    print("ready", flush=True)
    while not fast:
        turn()
        time.sleep(TURN)
    for c in clients:
        c.slow_to_the_end = not c.done
    selector = selectors.EpollSelector()
    waiting, going = [c for c in clients if not c.done], 0
    while waiting or going:
        # those that wait go on as before: httpd leaves a client that does nothing at all for its Timeout
        if time.monotonic() > due:
            for c in waiting:
                c.send(PIECE) if kind == "send" else c.read(PIECE)
            due = time.monotonic() + TURN
        while waiting and going < TOGETHER:
            c = waiting.pop(0)
            c.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            selector.register(c.sock, selectors.EVENT_READ | (selectors.EVENT_WRITE if kind == "send" else 0), c)
            going += 1
        for key, events in selector.select(1):
            c = key.data
            if events & selectors.EVENT_WRITE and not c.done:
                c.send(len(BLOCK))
                if c.sent == c.size:
                    selector.modify(c.sock, selectors.EVENT_READ, c)
            if events & selectors.EVENT_READ and not c.done:
                c.read(len(BLOCK) - 256)
            if c.done:
                selector.unregister(c.sock)
                going -= 1
    for c in clients:
        if not c.slow_to_the_end:
            c.wrong = c.wrong or "it was not slow"
    json.dump([f"{c.name}: {c.wrong}" for c in clients if c.wrong], sys.stdout)


if __name__ == "__main__":
    main()
