"""Clients that keep asking while a test does something to the server."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable

from . import http
from .wait import wait_until


@dataclasses.dataclass
class Result:
    """What one request came to; status 0: no answer at all."""

    status: int
    complete: bool
    text: str
    error: str = ""

    @property
    def good(self) -> bool:
        return self.status == 200 and self.complete


class Load:
    """`clients` threads that request `target` on keep-alive connections until the context ends. A connection that the
    server closes between two requests is replaced, as browsers do; a request that gets no whole answer is recorded."""

    def __init__(
        self,
        port: int,
        target: str = "/",
        clients: int = 8,
        method: str = "GET",
        body: Callable[[int], bytes] | None = None,
    ):
        self.port, self.target, self.method, self.body = port, target, method, body
        self.results: list[Result] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> Load:
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for t in self._threads:
            t.join()

    def _run(self) -> None:
        connection: http.Connection | None = None
        n = 0
        while not self._stop.is_set():
            n += 1
            fresh = connection is None
            try:
                connection = connection or http.Connection(self.port)
                body = self.body(n) if self.body else None
                r = connection.request(self.method, self.target, body=body)
            except (OSError, AssertionError) as e:
                if connection:
                    connection.close()
                connection = None
                # a kept-alive connection may be closed by the server before it has read anything: not a lost request
                if fresh or not isinstance(e, ConnectionError):
                    self.results.append(Result(0, False, "", repr(e)))
                continue
            self.results.append(Result(r.status, r.complete, r.text))
            if r.header("Connection") == "close" or not r.complete:
                connection.close()
                connection = None
        if connection:
            connection.close()

    def more(self, n: int = 100, deadline: float = 30.0) -> None:
        """Waits until n further requests have been answered."""
        seen = len(self.results)
        wait_until(lambda: len(self.results) >= seen + n, deadline, f"{n} more requests")

    @property
    def bad(self) -> list[Result]:
        return [r for r in self.results if not r.good]
