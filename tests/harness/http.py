"""A raw HTTP/1 client: what is sent is exactly what the test says, what comes back is judged strictly.

Nothing here repairs or hides: header fields stay a list in their order, chunked coding must be exact, and each answer
says how it ended (whole, cut short, or reset)."""

from __future__ import annotations

import dataclasses
import re
import socket
import ssl as _ssl
from collections.abc import Iterable

TIMEOUT = 30.0
_STATUS = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9][0-9])(?: ([^\r\n]*))?\r\n\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n]*?)[ \t]*\r\n\Z")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*\r\n\Z")


class ProtocolError(AssertionError):
    """The server sent something that is not HTTP."""


@dataclasses.dataclass
class Response:
    """One final answer."""

    version: str
    status: int
    reason: str
    #: (name as sent, value), in order
    headers: list[tuple[str, str]]
    body: bytes = b""
    #: how the body was delimited: none, length, chunked, close
    framing: str = "none"
    #: the body is whole according to its framing
    complete: bool = False
    #: what ended it: "framing", "eof" or "reset"
    ended: str = "framing"
    #: sizes of the chunks, when chunked
    chunks: list[int] = dataclasses.field(default_factory=list)
    #: statuses of interim (1xx) answers before it
    interim: list[int] = dataclasses.field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Values of each field of that name."""
        return [v for k, v in self.headers if k.lower() == name.lower()]

    def header(self, name: str) -> str | None:
        """The value of a field that occurs at most once."""
        values = self.all(name)
        assert len(values) <= 1, f"{name} occurs {len(values)} times: {values}"
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode("utf-8", "replace")

    @property
    def truncated(self) -> bool:
        """A client can tell that something is missing."""
        return not self.complete


def build(
    method: str = "GET",
    target: str = "/",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    version: str = "1.1",
    host: str | None = "localhost",
) -> bytes:
    """A request's bytes. Content-Length is added for a body unless a framing field is among the headers."""
    fields = list(headers)
    names = {k.lower() for k, _ in fields}
    if host is not None and "host" not in names:
        fields.insert(0, ("Host", host))
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        fields.append(("Content-Length", str(len(body))))
    head = f"{method} {target} HTTP/{version}\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields) + "\r\n"
    return head.encode("latin-1") + (body or b"")


def chunked(*pieces: bytes) -> bytes:
    """A chunked body of these pieces, with its end."""
    return b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces if p) + b"0\r\n\r\n"


class Connection:
    """One client connection; requests may follow each other on it."""

    def __init__(self, port: int, host: str = "127.0.0.1", timeout: float = TIMEOUT, tls: bool = False):
        self.sock = socket.create_connection((host, port), timeout=timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls:
            context = _ssl.SSLContext(_ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = _ssl.CERT_NONE
            # an end without close_notify is no end but a cut
            self.sock = context.wrap_socket(self.sock, server_hostname="localhost", suppress_ragged_eofs=False)
        self._buf = bytearray()
        self._eof: str | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(
        self,
        method: str = "GET",
        target: str = "/",
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        version: str = "1.1",
        host: str | None = "localhost",
    ) -> Response:
        """Sends one request and reads its answer."""
        self.send(build(method, target, headers, body, version, host))
        return self.response(method)

    def _fill(self) -> bool:
        """Reads more; False at the end of the connection, whose kind is then in `_eof`."""
        if self._eof:
            return False
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            self._eof = "reset"
            return False
        except _ssl.SSLEOFError:
            self._eof = "reset"
            return False
        if not data:
            self._eof = "eof"
            return False
        self._buf += data
        return True

    def _line(self) -> bytes | None:
        while True:
            i = self._buf.find(b"\n")
            if i >= 0:
                line = bytes(self._buf[: i + 1])
                del self._buf[: i + 1]
                return line
            if len(self._buf) > 1 << 20:
                raise ProtocolError("a line of more than 1 MiB")
            if not self._fill():
                return None

    def _take(self, n: int) -> bytes | None:
        while len(self._buf) < n:
            if not self._fill():
                return None
        data = bytes(self._buf[:n])
        del self._buf[:n]
        return data

    def head(self) -> Response:
        """Reads the head of the next final answer; the body is left for `body`."""
        interim: list[int] = []
        while True:
            response = self._one_head()
            if response.status < 200 and response.status != 101:
                interim.append(response.status)
                continue
            response.interim = interim
            return response

    def _one_head(self) -> Response:
        line = self._line()
        if line is None:
            raise ConnectionError(f"connection ended ({self._eof}) before a status line; {bytes(self._buf)!r}")
        m = _STATUS.match(line)
        if not m:
            raise ProtocolError(f"bad status line {line[:200]!r}")
        headers: list[tuple[str, str]] = []
        while True:
            line = self._line()
            if line is None:
                raise ProtocolError("the connection ended inside the head")
            if line == b"\r\n":
                break
            f = _FIELD.match(line)
            if not f:
                raise ProtocolError(f"bad header line {line[:200]!r}")
            headers.append((f[1].decode("latin-1"), f[2].decode("latin-1")))
        return Response(m[1].decode(), int(m[2]), (m[3] or b"").decode("latin-1"), headers)

    def response(self, method: str = "GET") -> Response:
        """Reads one final answer whole."""
        return self.body(self.head(), method)

    def body(self, r: Response, method: str = "GET") -> Response:
        """Reads the body of an answer whose head has been read."""
        encoding, length = r.header("Transfer-Encoding"), r.header("Content-Length")
        if encoding is not None and length is not None:
            raise ProtocolError("both Transfer-Encoding and Content-Length")
        if method == "HEAD" or r.status in (204, 304):
            r.framing, r.complete = "none", True
        elif encoding is not None:
            if encoding.lower() != "chunked":
                raise ProtocolError(f"Transfer-Encoding {encoding!r}")
            r.framing = "chunked"
            self._chunks(r)
        elif length is not None:
            r.framing = "length"
            n = int(length)
            while len(self._buf) < n and self._fill():
                pass
            r.body = bytes(self._buf[:n])
            del self._buf[:n]
            r.complete = len(r.body) == n
        else:
            r.framing = "close"
            while self._fill():
                pass
            r.body = bytes(self._buf)
            self._buf.clear()
            r.complete = self._eof == "eof"
        if not r.complete or r.framing == "close":
            r.ended = self._eof or "framing"
        return r

    def _chunks(self, r: Response) -> None:
        parts: list[bytes] = []
        try:
            while True:
                line = self._line()
                if line is None:
                    return
                m = _CHUNK.match(line)
                if not m:
                    raise ProtocolError(f"bad chunk size line {line[:100]!r} after {sum(map(len, parts))} bytes")
                n = int(m[1], 16)
                if n == 0:
                    while True:
                        trailer = self._line()
                        if trailer is None:
                            return
                        if trailer == b"\r\n":
                            r.complete = True
                            return
                data = self._take(n)
                if data is None:
                    parts.append(bytes(self._buf))
                    self._buf.clear()
                    return
                if self._take(2) != b"\r\n":
                    if self._eof:
                        parts.append(data)
                        return
                    raise ProtocolError("a chunk does not end with CRLF")
                r.chunks.append(n)
                parts.append(data)
        finally:
            r.body = b"".join(parts)

    def read_chunk(self) -> bytes | None:
        """The next chunk of a chunked body as soon as it is there; b'' at its end, None when cut short."""
        line = self._line()
        if line is None:
            return None
        m = _CHUNK.match(line)
        if not m:
            raise ProtocolError(f"bad chunk size line {line[:100]!r}")
        n = int(m[1], 16)
        data = self._take(n + 2)
        return None if data is None else data[:-2]

    def ended(self) -> str:
        """Reads to the end of the connection, which must bring no further byte: "eof" or "reset"."""
        while self._fill():
            pass
        if self._buf:
            raise ProtocolError(f"unexpected bytes {bytes(self._buf[:200])!r}")
        assert self._eof
        return self._eof


def fetch(
    port: int,
    target: str = "/",
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    version: str = "1.1",
    host: str | None = "localhost",
    tls: bool = False,
    timeout: float = TIMEOUT,
) -> Response:
    """One request on a connection of its own (`Connection: close` unless the headers say otherwise)."""
    fields = list(headers)
    if version == "1.1" and "connection" not in {k.lower() for k, _ in fields}:
        fields.append(("Connection", "close"))
    with Connection(port, tls=tls, timeout=timeout) as c:
        return c.request(method, target, fields, body, version, host)
