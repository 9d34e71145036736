"""W3: `wsgi.input`, by PEP 3333 and the documentation of io for the methods it names. Each test runs on every kind of
body that the server makes a difference between; the application sees none."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator

import pytest

from harness import http
from harness.case import Case, deploy, note, text
from harness.site import BODIES, Site

LINES = b"first line\nsecond\r\n\nfourth without end"
SPLIT = [b"first line\n", b"second\r\n", b"\n", b"fourth without end"]
#: read away first, where a body must be larger than what is kept in memory
PAD = b"p" * 70000 + b"\n"


@dataclasses.dataclass
class Poster:
    """Puts an application on the site and posts to it. The application gets the body behind `opened(environ)`."""

    server: Site
    kind: str

    @property
    def pad(self) -> bytes:
        return PAD if BODIES[self.kind].large else b""

    def case(self, app: Callable[..., object]) -> Case:
        return deploy(self.server, app, BODIES[self.kind].mount)

    def raw(self, case: Case, body: bytes, rest: str = "") -> bytes:
        body = self.pad + body
        fields = [("X-Pad", str(len(self.pad)))]
        if not BODIES[self.kind].chunked:
            return http.build("POST", case.path + rest, fields, body)
        # pieces that end anywhere
        step = max(7, len(body) // 50)
        pieces = [body[i : i + step] for i in range(0, len(body), step)]
        return http.build("POST", case.path + rest, [*fields, ("Transfer-Encoding", "chunked")], http.chunked(*pieces))

    def __call__(self, app: Callable[..., object], body: bytes = LINES) -> http.Response:
        case = self.case(app)
        with self.server.connect() as c:
            c.send(self.raw(case, body))
            return c.response()


@pytest.fixture(params=list(BODIES))
def post(request: pytest.FixtureRequest, server: Site) -> Iterator[Poster]:
    yield Poster(server, request.param)


def opened(environ):
    """For cases: `wsgi.input` at the body's first byte that matters."""
    stream = environ["wsgi.input"]
    pad = int(environ["HTTP_X_PAD"])
    assert len(stream.read(pad)) == pad
    return stream


def test_read_all(post: Poster) -> None:
    """read() gives the whole body, then b'' for ever."""

    def app(environ, start_response):
        stream = opened(environ)
        data = stream.read()
        assert type(data) is bytes
        rest = [stream.read(), stream.read(1), stream.read(0), stream.readline(), stream.readlines(), list(stream)]
        assert rest == [b"", b"", b"", b"", [], []], rest
        return text(start_response, data)

    assert post(app).body == LINES


@pytest.mark.parametrize("size", [1, 7, 8192, 65536, 1 << 30])
def test_read_with_size(post: Poster, size: int) -> None:
    """read(n) gives exactly n bytes as long as there are so many."""
    data = bytes(range(256)) * (1 if size < 100 else 200)

    def app(environ, start_response):
        stream = opened(environ)
        out = []
        while piece := stream.read(size):
            out.append(piece)
        assert {len(piece) for piece in out[:-1]} <= {size} and len(out[-1]) <= size
        assert stream.read(size) == b""
        return text(start_response, b"".join(out))

    assert post(app, data).body == data


def test_read_zero(post: Poster) -> None:
    """read(0) and readline(0) take nothing."""

    def app(environ, start_response):
        stream = opened(environ)
        assert stream.read(0) == b"" and stream.readline(0) == b"" and stream.read(0) == b""
        return text(start_response, stream.read())

    assert post(app).body == LINES


@pytest.mark.parametrize("method", ["read", "readline", "readlines"])
@pytest.mark.parametrize("size", [None, -1, -100])
def test_none_and_negative_sizes(post: Poster, method: str, size: int | None) -> None:
    """As with io: no limit."""

    def app(environ, start_response):
        stream = opened(environ)
        return text(start_response, repr(getattr(stream, method)(size)))

    expected = {"read": LINES, "readline": SPLIT[0], "readlines": SPLIT}[method]
    assert post(app).text == repr(expected)


def test_readline(post: Poster) -> None:
    """Lines end behind b'\\n' alone; the last one may lack it."""

    def app(environ, start_response):
        stream = opened(environ)
        return text(start_response, repr([stream.readline() for _ in range(6)]))

    assert post(app).text == repr([*SPLIT, b"", b""])


def test_readline_with_size(post: Poster) -> None:
    """readline(n): at most n bytes, the rest of the line comes next."""

    def app(environ, start_response):
        stream = opened(environ)
        return text(start_response, repr([stream.readline(n) for n in (1, 9, 9, 100, 2, 2, 100, 100, 1)]))

    expected = [b"f", b"irst line", b"\n", b"second\r\n", b"\n", b"fo", b"urth without end", b"", b""]
    assert post(app).text == repr(expected)


@pytest.mark.parametrize("length", [4095, 8192, 16383, 16384, 16385, 65535, 65536])
def test_lines_around_buffer_sizes(post: Poster, length: int) -> None:
    """Lines that end at, before and behind the places where buffers end."""
    body = (b"a" * (length - 1) + b"\n") * 3 + b"b" * length

    def app(environ, start_response):
        stream = opened(environ)
        return text(start_response, repr([len(line) for line in stream]))

    assert post(app, body).text == repr([length] * 4)


@pytest.mark.parametrize(("hint", "lines"), [(1, 1), (11, 1), (12, 2), (19, 2), (20, 3), (1000, 4), (0, 4)])
def test_readlines_with_hint(post: Poster, hint: int, lines: int) -> None:
    """readlines(hint) stops behind the line with which the sum reaches the hint; 0 is no hint."""

    def app(environ, start_response):
        stream = opened(environ)
        return text(start_response, repr((stream.readlines(hint), stream.read())))

    assert post(app).text == repr((SPLIT[:lines], b"".join(SPLIT[lines:])))


def test_iteration(post: Poster) -> None:
    """Iterating gives the lines; the stream is its own iterator."""

    def app(environ, start_response):
        stream = opened(environ)
        assert iter(stream) is stream
        first = next(stream)
        return text(start_response, repr([first, *stream]))

    assert post(app).text == repr(SPLIT)


def test_methods_mixed(post: Poster) -> None:
    """All methods go on where the one before stopped."""

    def app(environ, start_response):
        stream = opened(environ)
        out = [stream.read(2), stream.readline(3), next(stream), stream.readline(), stream.readlines(1), stream.read(6)]
        return text(start_response, repr([*out, stream.read()]))

    assert post(app).text == repr([b"fi", b"rst", b" line\n", b"second\r\n", [b"\n"], b"fourth", b" without end"])


@pytest.mark.parametrize("how", ["readline()", "readline(20_000_000)", "readlines()[0]", "read()", "next(stream)"])
def test_huge_line(post: Poster, how: str) -> None:
    """A line of 10 MB."""
    line = b"0123456789abcde\r" * (10_000_000 // 16) + b"\n"

    def app(environ, start_response):
        stream = opened(environ)
        data = next(stream) if how == "next(stream)" else eval("stream." + how)
        assert stream.read() == b""
        return text(start_response, f"{len(data)} {hashlib.sha256(data).hexdigest()}")

    assert post(app, line).text == f"{len(line)} {hashlib.sha256(line).hexdigest()}"


def test_huge_line_in_pieces(post: Poster) -> None:
    """readline(size) through a line of 10 MB costs no more than its bytes."""
    line = b"x" * 10_000_000 + b"\nend"

    def app(environ, start_response):
        stream = opened(environ)
        sizes = []
        while piece := stream.readline(99_999):
            sizes.append(len(piece))
        return text(start_response, f"{sum(sizes)} {len(sizes)}")

    assert post(app, line).text == f"{len(line)} 102"


def test_wrong_arguments(post: Poster) -> None:
    """As with io: TypeError, and the body is untouched."""

    def app(environ, start_response):
        stream = opened(environ)
        for name in ("read", "readline", "readlines"):
            for bad in (("1",), (1.5,), (1, 2), (b"",)):
                try:
                    getattr(stream, name)(*bad)
                except TypeError:
                    continue
                raise AssertionError((name, bad))
        return text(start_response, stream.read())

    assert post(app).body == LINES


def test_close_does_nothing(post: Poster) -> None:
    """PEP 3333: the stream belongs to the server; whoever closes it can read on."""

    def app(environ, start_response):
        stream = opened(environ)
        stream.close()
        return text(start_response, stream.read())

    assert post(app).body == LINES


def test_two_threads_read(post: Poster) -> None:
    """Threads of the application that share the stream get each byte once, and lines stay whole."""
    body = b"".join(b"%06d\n" % i for i in range(20000))

    def app(environ, start_response):
        import threading

        stream = opened(environ)
        parts = [[], []]
        threads = [threading.Thread(target=lambda p=p: p.extend(iter(stream.readline, b""))) for p in parts]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return text(start_response, b"".join(sorted(parts[0] + parts[1])))

    assert post(app, body).body == body


@pytest.mark.parametrize("read", [0, 1, 5000])
def test_body_not_read_to_its_end(post: Poster, read: int) -> None:
    """What the application leaves unread is no part of the next request."""
    body = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n" * 500

    def app(environ, start_response):
        note(environ["REQUEST_METHOD"])
        return text(start_response, environ["wsgi.input"].read(read) if read else b"")

    case = post.case(app)
    with post.server.connect() as c:
        c.send(post.raw(case, body))
        assert c.response().body == (post.pad + body)[:read]
        if BODIES[post.kind].streamed:
            # The answer came before the body's end: the server may end the connection rather than read the rest.
            try:
                c.send(post.raw(case, b""))
                again = c.response()
            except ConnectionError:
                assert case.notes() == ["POST"]
                return
        else:
            c.send(post.raw(case, b""))
            again = c.response()
        assert again.body == post.pad[:read]
    assert case.notes() == ["POST", "POST"]


def test_after_the_request(server: Site, post: Poster) -> None:
    """A stream that is used after its request has ended raises RuntimeError, whatever the method."""

    def app(environ, start_response):
        kept = vars(__import__("sys").modules["__main__"]).setdefault("kept_input", {})
        if environ["REQUEST_METHOD"] == "POST":
            kept["stream"] = environ["wsgi.input"]
            kept["stream"].read(1)
            return text(start_response, "kept")
        out = []
        for use in ("read()", "read(0)", "read(1)", "readline()", "readlines()", "__next__()"):
            try:
                out.append(eval("kept['stream']." + use))
            except RuntimeError as e:
                out.append(str(e))
        return text(start_response, repr(out))

    # both requests in the one thread of the group `single`; streaming does not change what comes after the end
    case = deploy(server, app, "/single")
    with server.connect() as c:
        c.send(post.raw(case, LINES))
        assert c.response().text == "kept"
    answers = eval(case.get().text)
    assert len(answers) == 6 and all("request" in a and "ended" in a for a in answers), answers


def test_no_body(server: Site, rightful) -> None:
    """A request without a body has an empty stream."""

    def app(environ, start_response):
        stream = environ["wsgi.input"]
        return text(start_response, repr([stream.read(5), stream.readline(), stream.readlines(), list(stream)]))

    for method in ("GET", "POST", "DELETE"):
        assert rightful(app).get(method=method).text == repr([b"", b"", [], []])


def test_validated_reading(server: Site, rightful) -> None:
    """The ways to read that PEP 3333 names, also under wsgiref.validate."""

    def app(environ, start_response):
        stream = environ["wsgi.input"]
        out = [stream.read(6), stream.readline(), stream.readlines(), stream.read(1)]
        return text(start_response, repr(out))

    assert rightful(app).get(method="POST", body=LINES).text == repr([b"first ", b"line\n", SPLIT[1:], b""])


def test_client_leaves_in_its_body(server: Site, post: Poster) -> None:
    """A body that ends early is never an empty read: a buffered application does not run at all, a streaming one gets
    OSError, which sticks."""
    server.allow_log(server.CLIENT_FAULTS)

    def app(environ, start_response):
        note("runs")
        stream = environ["wsgi.input"]
        got = b""
        for _ in range(3):
            try:
                while data := stream.read(100):
                    got += data
                note("an empty read")
            except OSError:
                note("OSError")
        return text(start_response, got)

    case = post.case(app)
    raw = post.raw(case, LINES * 10)
    with server.connect() as c:
        c.send(raw[:-100])
        if BODIES[post.kind].streamed:
            # before it has begun a request may well be taken back
            case.wait_notes("runs")
        c.sock.shutdown(1)
        with contextlib.suppress(ConnectionResetError):
            while c.sock.recv(1 << 16):
                pass
    if BODIES[post.kind].streamed:
        case.wait_notes("runs", "OSError", "OSError", "OSError")
    else:
        assert case.notes() == []
