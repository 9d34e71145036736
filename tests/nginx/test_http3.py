"""N11: applications through HTTP/3, where nginx has it and its client is here: scripts/nginx-versions.sh brings both."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import importlib.util
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from harness import log, nginx
from harness.nginx import Nginx

if importlib.util.find_spec("aioquic"):
    from aioquic.asyncio.client import connect
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.h3.connection import H3_ALPN, H3Connection
    from aioquic.h3.events import DataReceived, HeadersReceived
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import ConnectionTerminated, StreamReset
else:
    QuicConnectionProtocol = object  # type: ignore[assignment,misc]

pytestmark = pytest.mark.long

APP = """
import hashlib, os

def application(environ, start_response):
    path, stream = environ["PATH_INFO"], environ["wsgi.input"]
    headers = [("Content-Type", "text/plain"), ("X-Seen", "%(wsgi.url_scheme)s %(SERVER_PROTOCOL)s" % environ)]
    if path == "/upload":
        data = stream.read()
        headers += [("X-Length", environ.get("CONTENT_LENGTH", "absent")), ("X-Read", str(len(data)))]
        start_response("200 OK", headers)
        return [hashlib.sha256(data).hexdigest().encode()]
    if path == "/echo":
        # each piece is answered before the next has been sent
        start_response("200 OK", headers)
        return iter(lambda: stream.read(6), b"")
    if path == "/file":
        start_response("200 OK", headers)
        return environ["wsgi.file_wrapper"](open("{scratch}/large", "rb"))
    start_response("200 OK", headers + [("Content-Length", "6")])
    return [b"hello" + environ["QUERY_STRING"].encode()]
"""
LARGE = 20_000_000


class Client(QuicConnectionProtocol):
    """One connection; requests on it are told apart by their streams."""

    def __init__(self, *args: Any, **kw: Any):
        super().__init__(*args, **kw)
        self.http = H3Connection(self._quic)
        self.events: dict[int, asyncio.Queue[Any]] = collections.defaultdict(asyncio.Queue)

    def quic_event_received(self, event: Any) -> None:
        for e in self.http.handle_event(event):
            if isinstance(e, HeadersReceived | DataReceived):
                self.events[e.stream_id].put_nowait(e)
        if isinstance(event, StreamReset):
            self.events[event.stream_id].put_nowait(None)
        if isinstance(event, ConnectionTerminated):
            for queue in self.events.values():
                queue.put_nowait(None)


class Exchange:
    """One request and its answer."""

    def __init__(self, client: Client, method: str, target: str, *more: tuple[str, str], ends: bool = True):
        self.client, self.id = client, client._quic.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", target), *more]
        client.http.send_headers(self.id, [(k.encode(), v.encode()) for k, v in fields], end_stream=ends)
        client.transmit()

    def send(self, data: bytes, ends: bool = False) -> None:
        self.client.http.send_data(self.id, data, end_stream=ends)
        self.client.transmit()

    async def head(self) -> dict[str, str]:
        event = await asyncio.wait_for(self.client.events[self.id].get(), 30)
        assert isinstance(event, HeadersReceived), event
        return {k.decode(): v.decode() for k, v in event.headers}

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes; fails when it is cut."""
        while True:
            event = await asyncio.wait_for(self.client.events[self.id].get(), 30)
            assert isinstance(event, DataReceived), event
            if event.data:
                yield event.data
            if event.stream_ended:
                return

    async def body(self) -> bytes:
        return b"".join([p async for p in self.pieces()])


@pytest.fixture(scope="module")
def site(shared: Callable[..., Nginx]) -> Iterator[Nginx]:
    if "--with-http_v3_module" not in nginx.arguments():
        pytest.skip("this nginx has no HTTP/3: see scripts/nginx-versions.sh")
    if not importlib.util.find_spec("aioquic"):
        pytest.skip("no client of HTTP/3: see scripts/nginx-versions.sh")

    class Server(Nginx):
        def text(self) -> str:
            quic = f"listen 127.0.0.1:{self.tls_port} quic;\n"
            return super().text().replace("server_name localhost;", f"{quic}server_name localhost;")

        def _spawn(self) -> None:
            with open(self.scratch / "large", "wb") as f:
                f.truncate(LARGE)
            self.write("h3.wsgi", APP)
            super()._spawn()

    yield shared(
        """
        wsgi_process_group g;
        location / { wsgi_script {apps}/h3.wsgi; }
        location /echo { wsgi_script {apps}/h3.wsgi; wsgi_request_buffering off; wsgi_buffering off; }
        """,
        http_config="wsgi_daemon_process g threads=5;",
        tls=True,
        # without `reuseport` and eBPF a connection is one worker process's only where there is one
        workers=1,
        kind=Server,
    )


def through(site: Nginx, ask: Callable[[Client], Any]) -> None:
    """Has `ask` use a connection; ends it."""

    async def run() -> None:
        how = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
        async with connect("127.0.0.1", site.tls_port, configuration=how, create_protocol=Client) as client:
            await ask(client)

    asyncio.run(asyncio.wait_for(run(), 120))


def test_hello(site: Nginx) -> None:
    """N11: requests one after the other and beside each other on one connection."""

    async def ask(client: Client) -> None:
        first = Exchange(client, "GET", "/?1")
        head = await first.head()
        assert (head[":status"], head["x-seen"], head["content-length"]) == ("200", "https HTTP/3.0", "6")
        assert await first.body() == b"hello1"
        many = [Exchange(client, "GET", f"/?{i}") for i in range(8)]
        for i, one in enumerate(many):
            assert (await one.head())[":status"] == "200" and await one.body() == f"hello{i}".encode()

    through(site, ask)


@pytest.mark.parametrize("size", [0, 10, 50_000, 3_000_000])
@pytest.mark.parametrize("announced", [True, False], ids=["length", "no-length"])
def test_upload(site: Nginx, size: int, announced: bool) -> None:
    """N11, N10: bodies that go inline and by file, with and without an announced length, arrive whole."""
    data = bytes(range(250)) * (size // 250) + b"x" * (size % 250)

    async def ask(client: Client) -> None:
        length = [("content-length", str(size))] if announced else []
        one = Exchange(client, "POST", "/upload", *length, ends=False)
        for at in range(0, size, 100_000):
            one.send(data[at : at + 100_000])
        one.send(b"", ends=True)
        head = await one.head()
        assert (head[":status"], head["x-read"]) == ("200", str(size))
        assert await one.body() == hashlib.sha256(data).hexdigest().encode()

    through(site, ask)


def test_streamed_both_ways(site: Nginx) -> None:
    """N11: each piece of the body reaches the application, and its answer the client, before the next is sent."""

    async def ask(client: Client) -> None:
        one = Exchange(client, "POST", "/echo", ends=False)
        one.send(b"piece0")
        assert (await one.head())[":status"] == "200"
        answers, got = one.pieces(), b""
        for i in range(1, 20):
            while len(got) < 6 * i:
                got += await anext(answers)
            assert got.endswith(f"piece{(i - 1) % 10}".encode())
            one.send(f"piece{i % 10}".encode())
        one.send(b"", ends=True)
        got += b"".join([p async for p in answers])
        assert got == b"".join(f"piece{i % 10}".encode() for i in range(20))

    through(site, ask)


def test_a_large_file(site: Nginx) -> None:
    """N11, N10: a passed file arrives whole."""

    async def ask(client: Client) -> None:
        one = Exchange(client, "GET", "/file")
        assert (await one.head())[":status"] == "200"
        digest, size = hashlib.sha256(), 0
        async for piece in one.pieces():
            digest.update(piece)
            size += len(piece)
        assert size == LARGE and digest.digest() == hashlib.sha256(bytes(LARGE)).digest()

    through(site, ask)


def test_a_client_that_leaves(site: Nginx) -> None:
    """N11, N17: a connection that ends within a body leaves nothing that keeps the next from being served."""

    async def leave(client: Client) -> None:
        one = Exchange(client, "POST", "/echo", ends=False)
        one.send(b"piece0")
        assert (await one.head())[":status"] == "200"

    async def ask(client: Client) -> None:
        assert (await Exchange(client, "GET", "/?1").head())[":status"] == "200"

    site.log.expect("before the request body was complete")
    site.log.allow(log.CUT + "|failed to send stream cancellation")
    through(site, leave)
    site.log.wait("before the request body was complete")
    through(site, ask)
