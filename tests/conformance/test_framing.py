"""W13: request framing from raw bytes, the pairs that request smuggling is made of (RFC 9112, sections 2, 5, 6, 7).

Each case sends one doubtful request that hides another one, then a plain request behind it. Whatever the server makes
of it, the application sees no request that was hidden, no body but the one that the framing gives, and nothing at all of
what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from harness import http
from harness.case import note, text
from harness.site import Site

#: the server may refuse it; the application has then seen nothing, and the connection ends
REFUSED = "refused"


def record(environ, start_response):
    """Notes what the application sees of a request."""
    body = environ["wsgi.input"].read()
    fields = {k: v for k, v in environ.items() if k.startswith("HTTP_X_") or k == "CONTENT_LENGTH"}
    seen = [environ["REQUEST_METHOD"], environ["PATH_INFO"].rpartition("/")[2], body.decode("latin-1"), fields]
    note(json.dumps(seen))
    return text(start_response, b"seen " + body)


@dataclasses.dataclass
class Pair:
    """A request: head fields (raw, lines without their ends; LENGTH is that of `rest`) and what follows the head."""

    fields: list[bytes]
    rest: bytes
    #: what may happen: REFUSED, or the body that the application sees
    may: tuple[str | bytes, ...]
    version: bytes = b"HTTP/1.1"
    method: bytes = b"POST"
    eol: bytes = b"\r\n"
    #: the plain request behind it may be answered, too (else the connection has to end)
    reusable: bool = True

    def raw(self, path: str) -> bytes:
        rest = self.rest.replace(b"/PATH", path.encode())
        line = b"%s %s/first %s" % (self.method, path.encode(), self.version)
        fields = [f.replace(b"LENGTH", b"%d" % len(rest)) for f in self.fields]
        return self.eol.join([line, b"Host: localhost", *fields, b"", b""]) + rest


HIDDEN = b"GET /PATH/hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
ABC = b"3\r\nabc\r\n0\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked"


def length(value: bytes, *may: str | bytes, rest: bytes = b"abc") -> Pair:
    return Pair([b"Content-Length:" + value], rest, may)


def coding(value: bytes, *may: str | bytes, rest: bytes = ABC) -> Pair:
    return Pair([b"Transfer-Encoding:" + value], rest, may)


def chunk(rest: bytes, *may: str | bytes) -> Pair:
    return Pair([CHUNKED], rest, may)


PAIRS = {
    # plain ones, so that the others mean something
    "length": length(b" 3", b"abc"),
    "chunked": coding(b" chunked", b"abc"),
    "no-body": Pair([], b"", (b"",)),
    "get-with-body": Pair([b"Content-Length: 3"], b"abc", (b"abc",), method=b"GET"),
    "delete-with-chunked-body": Pair([CHUNKED], ABC, (b"abc",), method=b"DELETE"),
    "body-that-looks-like-a-request": length(b" LENGTH", HIDDEN, rest=HIDDEN),
    # RFC 9112, 6.3: both
    "length-and-chunked": Pair(
        [b"Content-Length: LENGTH", CHUNKED], b"0\r\n\r\n" + HIDDEN, (REFUSED, b""), reusable=False
    ),
    "chunked-and-length": Pair([CHUNKED, b"Content-Length: 3"], ABC + HIDDEN, (REFUSED, b"abc"), reusable=False),
    "chunked-and-length-0": Pair([CHUNKED, b"Content-Length: 0"], ABC + HIDDEN, (REFUSED, b"abc"), reusable=False),
    "length-and-identity": Pair(
        [b"Content-Length: 3", b"Transfer-Encoding: identity"], b"abc" + HIDDEN, (REFUSED,), reusable=False
    ),
    # RFC 9112, 6.3: several lengths
    "lengths-differ": Pair([b"Content-Length: 3", b"Content-Length: LENGTH"], b"abc" + HIDDEN, (REFUSED,)),
    "lengths-differ-other-way": Pair([b"Content-Length: LENGTH", b"Content-Length: 3"], b"abc" + HIDDEN, (REFUSED,)),
    "lengths-same": Pair([b"Content-Length: 3", b"Content-Length: 3"], b"abc", (REFUSED, b"abc")),
    "lengths-listed": length(b" 3, 3", REFUSED, b"abc"),
    "lengths-listed-differ": length(b" 3, LENGTH", REFUSED, rest=b"abc" + HIDDEN),
    # RFC 9110, 8.6: 1*DIGIT
    "length-plus": length(b" +3", REFUSED),
    "length-minus": length(b" -3", REFUSED),
    "length-minus-zero": length(b" -0", REFUSED, rest=b""),
    "length-hexadecimal": length(b" 0x3", REFUSED),
    "length-empty": length(b"", REFUSED),
    "length-blank": length(b"  \t", REFUSED),
    "length-two-words": length(b" 3 3", REFUSED),
    "length-fraction": length(b" 3.0", REFUSED),
    "length-exponent": length(b" 3e0", REFUSED),
    "length-comma": length(b" 3,", REFUSED, b"abc"),
    "length-quoted": length(b' "3"', REFUSED),
    "length-superscript": length(b" \xb3", REFUSED),
    "length-beyond-64-bits": length(b" 18446744073709551619", REFUSED),
    "length-beyond-63-bits": length(b" 9223372036854775811", REFUSED),
    "length-leading-zero": length(b" 0003", b"abc"),
    "length-with-blanks-around": length(b" \t 3 \t ", b"abc"),
    # RFC 9112, 6.1: codings
    "coding-in-capitals": coding(b" CHUNKED", b"abc"),
    "coding-identity": coding(b" identity", REFUSED),
    "coding-unknown": coding(b" xchunked", REFUSED),
    "coding-gzip-chunked": coding(b" gzip, chunked", REFUSED),
    "coding-chunked-gzip": coding(b" chunked, gzip", REFUSED),
    "coding-chunked-identity": coding(b" chunked, identity", REFUSED),
    "coding-twice-in-a-list": coding(b" chunked, chunked", REFUSED),
    "coding-twice": Pair([CHUNKED, CHUNKED], ABC, (REFUSED,)),
    "coding-and-identity": Pair([CHUNKED, b"Transfer-Encoding: identity"], ABC, (REFUSED,)),
    "coding-parameter": coding(b" chunked;q=1", REFUSED),
    "coding-quoted": coding(b' "chunked"', REFUSED),
    "coding-empty": coding(b"", REFUSED),
    "coding-comma": coding(b" ,chunked", REFUSED, b"abc"),
    "coding-vertical-tab": coding(b" \x0bchunked", REFUSED),
    "coding-with-nul": coding(b" chunked\0", REFUSED),
    "coding-in-http10": Pair([CHUNKED], ABC + HIDDEN, (REFUSED, b"abc"), version=b"HTTP/1.0", reusable=False),
    "coding-in-http10-with-length": Pair(
        [CHUNKED, b"Content-Length: 3", b"Connection: keep-alive"],
        ABC + HIDDEN,
        (REFUSED, b"abc"),
        version=b"HTTP/1.0",
        reusable=False,
    ),
    # RFC 9112, 7.1: chunk sizes
    "chunk-size-plus": chunk(b"+3\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-minus": chunk(b"-3\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-0x": chunk(b"0x3\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-empty": chunk(b"\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-word": chunk(b"xyz\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-two-words": chunk(b"3 3\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-underscore": chunk(b"0_3\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-leading-blank": chunk(b" 3\r\nabc\r\n0\r\n\r\n", REFUSED, b"abc"),
    "chunk-size-trailing-blank": chunk(b"3 \r\nabc\r\n0\r\n\r\n", REFUSED, b"abc"),
    "chunk-size-leading-zeros": chunk(b"0000003\r\nabc\r\n000\r\n\r\n", b"abc"),
    "chunk-size-many-zeros": chunk(b"0" * 60 + b"3\r\nabc\r\n0\r\n\r\n", REFUSED, b"abc"),
    "chunk-size-beyond-64-bits": chunk(b"10000000000000003\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-beyond-63-bits": chunk(b"8000000000000003\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-of-all-bits": chunk(b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-size-in-capitals": chunk(b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    "chunk-size-bare-lf": chunk(b"3\nabc\r\n0\r\n\r\n", REFUSED, b"abc"),
    "chunk-size-bare-cr": chunk(b"3\rabc\r\n0\r\n\r\n", REFUSED),
    "chunk-too-short-for-its-data": chunk(b"2\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-too-long-for-its-data": chunk(b"4\r\nabc\r\n0\r\n\r\n", REFUSED),
    "chunk-without-its-end": chunk(b"3\r\nabc0\r\n\r\n", REFUSED),
    "chunk-end-bare-lf": chunk(b"3\r\nabc\n0\r\n\r\n", REFUSED, b"abc"),
    # RFC 9112, 7.1.1: extensions
    "extension": chunk(b"3;name=value\r\nabc\r\n0;last\r\n\r\n", b"abc"),
    "extension-quoted": chunk(b'3;name="va;lue"\r\nabc\r\n0\r\n\r\n', b"abc"),
    "extension-bare-semicolon": chunk(b"3;\r\nabc\r\n0\r\n\r\n", REFUSED, b"abc"),
    "extension-open-quote": chunk(b'3;a="\r\nabc\r\n0\r\n\r\n', REFUSED, b"abc"),
    "extension-with-bare-lf": chunk(b"3;a\nabc\r\n0\r\n\r\n", REFUSED, b"abc"),
    "extension-with-bare-cr": chunk(b"3;a\rb\r\nabc\r\n0\r\n\r\n", REFUSED),
    "extension-with-nul": chunk(b"3;a\0\r\nabc\r\n0\r\n\r\n", REFUSED),
    "extension-hides-a-request": chunk(
        b"2;\nxx\r\n3c\r\n0\r\n\r\nGET /PATH/hidden HTTP/1.1\r\nHost: localhost\r\nX: 1234\r\n0\r\n\r\n", REFUSED
    ),
    # RFC 9112, 7.1.2: trailers
    "trailer": chunk(b"3\r\nabc\r\n0\r\nX-Trailer: forged\r\n\r\n", b"abc"),
    "trailer-content-length": chunk(b"3\r\nabc\r\n0\r\nContent-Length: 62\r\n\r\n", REFUSED, b"abc"),
    "trailer-transfer-encoding": chunk(b"3\r\nabc\r\n0\r\nTransfer-Encoding: identity\r\n\r\n", REFUSED, b"abc"),
    "trailer-without-colon": chunk(b"3\r\nabc\r\n0\r\nX-Trailer\r\n\r\n", REFUSED),
    "trailer-missing-end": chunk(b"3\r\nabc\r\n0\r\n", REFUSED),
    # RFC 9112, 2.2, 5.1, 5.2; RFC 9110, 5.5: fields
    "bare-lf-everywhere": Pair([b"Content-Length: 3"], b"abc", (REFUSED, b"abc"), eol=b"\n"),
    "bare-lf-in-a-value": Pair([b"X-A: 1\nContent-Length: 3"], b"abc", (REFUSED, b"abc")),
    "bare-cr-in-a-value": Pair([b"X-A: 1\rContent-Length: 62"], b"", (REFUSED,)),
    "bare-cr-before-a-name": Pair([b"\rContent-Length: 3"], b"abc", (REFUSED,)),
    "bare-lf-hides-chunked": Pair(
        [b"Content-Length: 3", b"X-A: 1\n" + CHUNKED], ABC, (REFUSED, b"abc"), reusable=False
    ),
    "nul-in-a-value": Pair([b"X-A: 1\x002", b"Content-Length: 3"], b"abc", (REFUSED,)),
    "nul-in-a-name": Pair([b"X-\0A: 1", b"Content-Length: 3"], b"abc", (REFUSED,)),
    "nul-behind-the-length": length(b" 3\0", REFUSED),
    "control-character-in-a-value": Pair([b"X-A: \x01", b"Content-Length: 3"], b"abc", (REFUSED,)),
    "blank-before-the-colon-of-length": Pair([b"Content-Length : 3"], b"abc", (REFUSED,)),
    "blank-before-the-colon-of-coding": Pair([b"Content-Length: 3", b"Transfer-Encoding : chunked"], ABC, (REFUSED,)),
    "tab-before-the-colon": Pair([b"Content-Length\t: 3"], b"abc", (REFUSED,)),
    "blank-before-the-first-field": Pair([b" X-A: 1", b"Content-Length: 3"], b"abc", (REFUSED,)),
    "blank-within-a-name": Pair([b"Content- Length: 3"], b"abc", (REFUSED,)),
    "no-colon": Pair([b"X-A", b"Content-Length: 3"], b"abc", (REFUSED,)),
    "no-name": Pair([b": 1", b"Content-Length: 3"], b"abc", (REFUSED,)),
    "name-that-is-no-token": Pair([b"X(A): 1", b"Content-Length: 3"], b"abc", (REFUSED,)),
    "name-with-high-byte": Pair([b"X-\xe9: 1", b"Content-Length: 3"], b"abc", (REFUSED,)),
    "folded": Pair([b"X-A: 1", b" 2", b"Content-Length: 3"], b"abc", (REFUSED, b"abc")),
    "folded-length": Pair([b"Content-Length:", b" 3"], b"abc", (REFUSED, b"abc")),
    "folded-coding": Pair([b"Transfer-Encoding:", b"\tchunked"], ABC, (REFUSED, b"abc")),
    "folded-coding-behind-length": Pair(
        [b"Content-Length: 3", b"Transfer-Encoding:", b" chunked"], ABC + HIDDEN, (REFUSED, b"abc"), reusable=False
    ),
    "folded-hides-length": Pair([b"X-A: 1", b" Content-Length: 62"], b"", (REFUSED, b"")),
    "underscore-length": Pair([b"Content_Length: 62"], b"", (REFUSED, b"")),
    "underscore-coding": Pair([b"Transfer_Encoding: chunked", b"Content-Length: 3"], b"abc", (REFUSED, b"abc")),
    "no-host": Pair([b"Content-Length: 3"], b"abc", (b"abc",)),
    "two-hosts": Pair([b"Host: other", b"Content-Length: 3"], b"abc", (REFUSED,)),
    # RFC 9112, 3: request lines
    "unknown-protocol": Pair([b"Content-Length: 3"], b"abc", (REFUSED,), version=b"HTTX/1.1"),
    "protocol-3": Pair([b"Content-Length: 3"], b"abc", (REFUSED, b"abc"), version=b"HTTP/3.0"),
    "protocol-in-small-letters": Pair([b"Content-Length: 3"], b"abc", (REFUSED,), version=b"http/1.1"),
    "words-behind-the-protocol": Pair([b"Content-Length: 3"], b"abc", (REFUSED,), version=b"HTTP/1.1 x"),
    "nul-in-the-request-line": Pair([b"Content-Length: 3"], b"abc", (REFUSED,), version=b"HTTP/1.1\0"),
    "method-that-is-no-token": Pair([b"Content-Length: 3"], b"abc", (REFUSED,), method=b"PO(ST"),
}


def talk(server: Site, raw: bytes) -> list[http.Response]:
    """Sends the bytes and reads to the end of the connection: the answers."""
    found = []
    with server.connect(timeout=10) as c:
        c.send(raw)
        try:
            while True:
                found.append(c.response())
        except ConnectionError:
            return found


@pytest.mark.parametrize("name", list(PAIRS))
def test_pair(server: Site, case, name: str) -> None:
    """Refused without a word to the application, or framed as the RFC says; never both, never anything hidden."""
    server.allow_log(server.CLIENT_FAULTS)
    pair = PAIRS[name]
    may = (*pair.may, *([server.LENIENT[name] or REFUSED] if name in server.LENIENT else []))
    c = case(record)
    plain = http.build("GET", c.path + "/plain", [("Connection", "close"), ("X-Pad", "p" * 100)])
    answers = talk(server, pair.raw(c.path) + plain)
    seen = [json.loads(line) for line in c.notes()]
    statuses = [a.status for a in answers]
    context = f"{name}: {statuses} {seen}"
    if answers[0].status >= 400:
        assert REFUSED in may, context
        assert seen == [] and len(answers) == 1, context
        return
    bodies = [b.replace(b"/PATH", c.path.encode()) for b in may if isinstance(b, bytes)]
    method, path, body, fields = seen[0]
    assert (method, path) == (pair.method.decode(), "first") and body.encode("latin-1") in bodies, context
    assert answers[0].body == b"seen " + body.encode("latin-1"), context
    if body or "CONTENT_LENGTH" in fields:
        assert int(fields["CONTENT_LENGTH"]) == len(body), context
    assert "HTTP_X_TRAILER" not in fields and "\n" not in json.dumps(fields), context
    behind = [entry[1] for entry in seen[1:]]
    assert behind in ([], ["plain"]) and statuses == [200] * len(seen), context
    assert pair.reusable or not behind, context


def test_pipelined_bodies(server: Site, case) -> None:
    """RFC 9112, 9.3.2: requests with bodies of each framing, sent at once, each get their own body and answer."""
    c = case(record)
    bodies = [b"x" * n for n in (0, 1, 5, 70000, 3, 66000)]
    raw = b""
    for i, body in enumerate(bodies):
        if i % 2:
            raw += http.build("PUT", f"{c.path}/{i}", [("Transfer-Encoding", "chunked")], http.chunked(body))
        else:
            raw += http.build("PUT", f"{c.path}/{i}", body=body)
    raw += http.build("GET", c.path + "/last", [("Connection", "close")])
    assert [a.body for a in talk(server, raw)] == [b"seen " + body for body in [*bodies, b""]]
    seen = [json.loads(line) for line in c.notes()]
    assert [(path, len(body)) for _, path, body, _ in seen] == [
        *((str(i), len(body)) for i, body in enumerate(bodies)),
        ("last", 0),
    ]


def test_empty_lines_before_a_request(server: Site, case) -> None:
    """RFC 9112, 2.2: at least one CRLF before the request line is ignored, also between pipelined requests."""
    c = case(record)
    one = http.build("POST", c.path + "/1", body=b"abc")
    two = http.build("GET", c.path + "/2", [("Connection", "close")])
    assert [a.status for a in talk(server, b"\r\n" + one + b"\r\n" + two)] == [200, 200]
    assert [json.loads(line)[1] for line in c.notes()] == ["1", "2"]


def test_request_in_single_bytes(server: Site, case) -> None:
    """Framing does not depend on how the bytes arrive."""
    c = case(record)
    raw = http.build(
        "POST", c.path + "/slow", [("Transfer-Encoding", "chunked")], b"3;x=y\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
    )
    with server.connect() as connection:
        for i in range(len(raw)):
            connection.send(raw[i : i + 1])
        assert connection.response().body == b"seen abc"


def test_absolute_target(server: Site, case) -> None:
    """RFC 9112, 3.2.2: a target in absolute form names the host, whatever Host says."""

    def app(environ, start_response):
        return text(start_response, json.dumps([environ["SERVER_NAME"], environ["PATH_INFO"].rpartition("/")[2]]))

    c = case(app)
    r = server.get(f"http://named.example{c.path}/x", host="other.example")
    assert (r.status, r.text) == (200, '["named.example", "x"]')
