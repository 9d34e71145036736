"""Clients that give every request a number of its own, check every byte of the answer, and say afterwards what became of
each. Together with the notes of apps/faults.wsgi this proves what was lost and what was served twice.

Runs in a process of its own (one thread, epoll), so that what the test does meanwhile does not show as latency."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import heapq
import json
import mmap
import pathlib
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

#: a request without an answer after this long is lost
LIMIT = 15.0
_LENGTH = re.compile(rb"\r\nContent-Length: (\d+)\r\n", re.I)
_CHUNKED = re.compile(rb"\r\nTransfer-Encoding: chunked\r\n", re.I)
_CLOSE = re.compile(rb"\r\nConnection: close\r\n", re.I)


def payload(name: str, size: int) -> bytes:
    """The body that belongs to an id; apps/faults.wsgi knows it too."""
    line = name.encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


def request(name: str, number: int, close: bool) -> tuple[bytes, bytes]:
    """A request's bytes and the body its answer must have: a mix of what applications do, by the number."""
    kind, body, sent = number % 20, b"", b""
    if kind == 3:
        target, body = f"/slow?id={name}&seconds=0.03", payload(name, 100)
    elif kind == 7:
        target, body = f"/stream?id={name}&size=30000", payload(name, 30000)
    elif kind in (11, 17):
        sent = payload(name, 2000 if kind == 11 else 100_000)
        target, body = f"/post?id={name}", b"%d %s" % (len(sent), hashlib.sha256(sent).hexdigest().encode())
    else:
        size = 13 + number * 97 % 2000
        target, body = f"/exact?id={name}&size={size}", payload(name, size)
    head = f"{'POST' if sent else 'GET'} {target} HTTP/1.1\r\nHost: localhost\r\n"
    if sent:
        head += f"Content-Length: {len(sent)}\r\n"
    if close:
        head += "Connection: close\r\n"
    return head.encode() + b"\r\n" + sent, body


@dataclasses.dataclass
class Outcome:
    """What became of one request."""

    name: str
    #: 0: no head came
    status: int
    #: the answer is the right one to the last byte
    exact: bool
    #: the client can tell that the answer is not whole
    cut: bool
    #: a kept connection was found closed, nothing of an answer had come: browsers ask again, and so do these clients
    stale: bool
    #: seconds from the first byte sent to the last received, and when (monotonic) it began
    took: float
    at: float
    error: str = ""


class _Client:
    def __init__(self, number: int) -> None:
        #: every second client keeps its connection
        self.keeps = number % 2 == 0
        self.sock: socket.socket | None = None
        self.served = 0
        self.out = self.buf = b""
        self.want = b""
        self.name = ""
        self.began = 0.0


def _judge(buf: bytes, want: bytes, eof: bool) -> tuple[int, bool, bool, bool] | None:
    """(status, exact, cut, connection stays) of what has come; None: more must come."""
    head, sep, rest = buf.partition(b"\r\n\r\n")
    if not sep:
        return (0, False, True, False) if eof else None
    head += b"\r\n"
    status = int(head[9:12]) if head[:7] == b"HTTP/1." else -1
    stays = not _CLOSE.search(head) and not eof
    length = _LENGTH.search(head)
    if length:
        n = int(length[1])
        if len(rest) < n:
            return (status, False, True, False) if eof else None
        return status, status == 200 and rest == want, False, stays
    if _CHUNKED.search(head):
        if not rest.endswith(b"0\r\n\r\n"):
            return (status, False, True, False) if eof else None
        body, at = [], 0
        while True:
            end = rest.find(b"\r\n", at)
            if end < 0:
                return (status, False, True, False) if eof else None
            n = int(rest[at:end], 16)
            if n == 0:
                break
            body.append(rest[end + 2 : end + 2 + n])
            if rest[end + 2 + n : end + 4 + n] != b"\r\n":
                return (status, False, True, False) if eof else None
            at = end + 4 + n
        return status, status == 200 and b"".join(body) == want, False, stays
    # delimited by the end of the connection
    return (status, status == 200 and rest == want, False, False) if eof else None


def run(port: int, clients: int, pause: float, prefix: str, count: mmap.mmap, results: list[Outcome]) -> None:
    """Asks until SIGTERM, then until what is under way has been answered."""
    selector = selectors.EpollSelector()
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    due = [(time.monotonic() + i * pause / clients, i) for i in range(clients)]
    heapq.heapify(due)
    all_of_them = [_Client(i) for i in range(clients)]
    under_way: set[int] = set()
    number = done = 0

    def begin(i: int) -> None:
        nonlocal number
        c = all_of_them[i]
        number += 1
        c.name = f"{prefix}-{number}"
        c.out, c.want = request(c.name, number, not c.keeps)
        c.buf, c.began = b"", time.monotonic()
        under_way.add(i)
        if c.sock is None:
            c.sock, c.served = socket.socket(), 0
            c.sock.setblocking(False)
            c.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                c.sock.connect(("127.0.0.1", port))
            except BlockingIOError:
                pass
            except OSError as e:
                return end(i, 0, False, False, False, repr(e))
            selector.register(c.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, i)
        else:
            selector.modify(c.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, i)

    def end(i: int, status: int, exact: bool, cut: bool, stays: bool, error: str = "") -> None:
        nonlocal done
        c = all_of_them[i]
        now = time.monotonic()
        stale = bool(status == 0 and c.served and not c.buf and error != "timeout")
        results.append(Outcome(c.name, status, exact, cut, stale, now - c.began, c.began, error))
        under_way.discard(i)
        c.served += 1
        if not (stays and c.keeps and c.served < 100) and c.sock is not None:
            if c.sock.fileno() in selector.get_map():
                selector.unregister(c.sock)
            c.sock.close()
            c.sock = None
        done += 1
        struct.pack_into("<Q", count, 0, done)
        heapq.heappush(due, (now if stale else now + pause, i))

    def ready(i: int, events: int) -> None:
        c = all_of_them[i]
        if c.sock is None:
            return
        if i not in under_way:
            # a kept connection that the server closes between two requests
            selector.unregister(c.sock)
            c.sock.close()
            c.sock = None
            return
        error = ""
        try:
            if events & selectors.EVENT_WRITE:
                if c.out:
                    c.out = c.out[c.sock.send(c.out) :]
                if not c.out:
                    selector.modify(c.sock, selectors.EVENT_READ, i)
            if events & selectors.EVENT_READ:
                data = c.sock.recv(262144)
                c.buf += data
                verdict = _judge(c.buf, c.want, not data)
                if verdict:
                    end(i, *verdict, error="" if verdict[1] else "eof" if not data else repr(c.buf[:300]))
            return
        except BlockingIOError:
            return
        except OSError as e:
            error = repr(e)
        # An answer may lie behind a failed send.
        try:
            while data := c.sock.recv(262144):
                c.buf += data
        except OSError as e:
            error += f" {e!r}"
        status, exact, cut, _ = _judge(c.buf, c.want, True) or (0, False, True, False)
        if exact and c.out:
            exact = False
        end(i, status, exact, cut or not exact, False, error)

    while not stop or under_way:
        now = time.monotonic()
        while due and due[0][0] <= now:
            i = heapq.heappop(due)[1]
            if not stop:
                begin(i)
        for i in [i for i in under_way if now - all_of_them[i].began > LIMIT]:
            end(i, 0, False, True, False, "timeout")
        wait = min(due[0][0] - now, 0.5) if due and not stop else 0.5
        for key, events in selector.select(max(wait, 0)):
            ready(key.data, events)


class Counted:
    """`with Counted(port, prefix) as load:` … `load.results` afterwards."""

    def __init__(self, port: int, prefix: str, clients: int = 8, pause: float = 0.005):
        self.args = [str(port), prefix, str(clients), str(pause)]
        self.results: list[Outcome] = []
        self._file = tempfile.NamedTemporaryFile(prefix="mwr-count-")  # noqa: SIM115
        self._file.write(b"\0" * 8)
        self._file.flush()
        self._count = mmap.mmap(self._file.fileno(), 8)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Counted:
        self._out = tempfile.TemporaryFile()
        command = [sys.executable, "-m", "harness.counted", self._file.name, *self.args]
        here = pathlib.Path(__file__).resolve().parent.parent
        self._process = subprocess.Popen(command, stdout=self._out, cwd=here)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        assert self._process
        self._process.terminate()
        try:
            # what they have found out is written at the end, which takes its time on a busy machine
            code = self._process.wait(LIMIT + 60)
        finally:
            self._process.kill()
            self._process.wait()
            self._file.close()
        self._out.seek(0)
        if kind is None:
            assert code == 0, f"the clients ended with {code}"
        if code == 0:
            self.results = [Outcome(*r) for r in json.load(self._out)]
        self._out.close()

    def count(self) -> int:
        """Requests that have come to an end."""
        return struct.unpack_from("<Q", self._count, 0)[0]

    def more(self, n: int, deadline: float = 30.0) -> None:
        """Waits until n further ones have."""
        until, end = self.count() + n, time.monotonic() + deadline
        while self.count() < until:
            assert self._process and self._process.poll() is None, "the clients have ended"
            assert time.monotonic() < end, f"not {n} more answers within {deadline} s"
            time.sleep(0.02)


@dataclasses.dataclass
class Tally:
    """The reckoning of one run."""

    sent: int
    #: had begun in a process that was killed: 502, or an answer that shows that it is cut
    running: list[Outcome]
    #: everything else without its right answer
    lost: list[Outcome]
    twice: list[str]
    #: what is worse than an error: a wrong answer that looks right, an answer nobody gave
    wrong: list[Outcome]
    stale: int
    p50: float
    p999: float
    worst: float

    def __str__(self) -> str:
        return (
            f"{self.sent} requests, {len(self.running)} failed in killed processes, {len(self.lost)} lost, "
            f"{len(self.twice)} served twice, {len(self.wrong)} wrong, {self.stale} stale connections; "
            f"p50 {self.p50 * 1e3:.1f}, p99.9 {self.p999 * 1e3:.0f}, worst {self.worst * 1e3:.0f} ms"
        )

    def clean(self, running: int = 0) -> None:
        """Nothing lost, nothing twice; at most so many failed in processes that were killed."""
        bad = self.lost[:5] + self.wrong[:5] + (self.running[:5] if len(self.running) > running else [])
        assert not self.lost and not self.wrong and not self.twice and len(self.running) <= running, (
            f"{self}\n" + "\n".join(map(str, bad)) + f"\ntwice: {self.twice[:5]}"
        )


def quantile(values: list[float], q: float) -> float:
    """The q-quantile; 0 of nothing."""
    return sorted(values)[min(int(len(values) * q), len(values) - 1)] if values else 0.0


def begun(notes: pathlib.Path) -> dict[str, list[int]]:
    """Which processes have begun which request, from the application's notes."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    if notes.exists():
        for line in notes.read_text().splitlines():
            name, _, pid = line.rpartition(" ")
            found[name].append(int(pid))
    return found


def tally(
    results: list[Outcome],
    notes: pathlib.Path,
    killed: Iterable[int] = (),
    cut_off: bool = False,
    claimed: Iterable[str] = (),
) -> Tally:
    """Sets what the clients saw against what the application did. `killed`: workers that the test has ended. `claimed`:
    requests that had begun in those without the application having come so far as to note it. `cut_off`: the test has
    ended processes of the server too, so that connections may break."""
    ran, ended, claimed = begun(notes), set(killed), set(claimed)

    def told(r: Outcome) -> bool:
        return r.status == 502 or (r.cut and r.status == 200)

    running, lost, wrong = [], [], []
    for r in results:
        where = ran.get(r.name, [])
        if r.exact:
            if len(where) != 1:
                wrong.append(r)
        elif r.status == 200 and not r.cut:
            wrong.append(r)
        elif r.stale and not where:
            continue
        elif (((where and where[-1] in ended) or (not where and r.name in claimed)) and told(r)) or (
            cut_off and (r.status == 0 or r.cut)
        ):
            running.append(r)
        else:
            lost.append(r)
    names = {r.name for r in results}
    twice = [name for name, where in ran.items() if len(where) > 1 and name in names]
    took = [r.took for r in results if r.exact]
    stale = sum(r.stale for r in results)
    return Tally(
        len(results) - stale, running, lost, twice, wrong, stale,
        quantile(took, 0.5), quantile(took, 0.999), max(took, default=0.0),
    )  # fmt: skip


def _main() -> None:
    path, port, prefix, clients, pause = sys.argv[1:]
    with open(path, "r+b") as f:
        count = mmap.mmap(f.fileno(), 8)
    results: list[Outcome] = []
    run(int(port), int(clients), float(pause), prefix, count, results)
    json.dump([dataclasses.astuple(r) for r in results], sys.stdout)


if __name__ == "__main__":
    _main()
