"""W1: what popular WSGI servers were seen to get wrong, one test for each row: cheap places to be right. The name of a
test is its row's."""

from __future__ import annotations

import json
import os

import pytest

from harness import http
from harness.case import note, text
from harness.site import Site

LINES = b"one\ntwo\nthree"


def test_readline_over_three_lines(case) -> None:
    """`wsgi.input.readline()`: each line with its newline, then b''."""

    def app(environ, start_response):
        stream = environ["wsgi.input"]
        return text(start_response, repr([stream.readline() for _ in range(5)]))

    r = case(app).get(method="POST", body=LINES)
    assert r.text == repr([b"one\n", b"two\n", b"three", b"", b""])


def test_readline_with_size(case) -> None:
    """`readline(size)`: at most so many bytes, never past the newline."""

    def app(environ, start_response):
        stream = environ["wsgi.input"]
        return text(start_response, repr([stream.readline(n) for n in (2, 2, 2, 4, 0, 100, 100)]))

    r = case(app).get(method="POST", body=LINES)
    assert r.text == repr([b"on", b"e\n", b"tw", b"o\n", b"", b"three", b""])


def test_readlines(case) -> None:
    """`readlines()`: all lines with their newlines."""

    def app(environ, start_response):
        stream = environ["wsgi.input"]
        return text(start_response, repr([stream.readlines(), stream.readlines()]))

    assert case(app).get(method="POST", body=LINES).text == repr([[b"one\n", b"two\n", b"three"], []])


def test_iterating_the_input(case) -> None:
    """Iteration ends at the end of the body, also where the last line has no newline."""

    def app(environ, start_response):
        return text(start_response, repr(list(environ["wsgi.input"])))

    c = case(app)
    assert c.get(method="POST", body=LINES).text == repr([b"one\n", b"two\n", b"three"])
    with c.server.connect() as connection:
        # the next request is on its way already: reading past the body would take it, or hang
        connection.send(http.build("POST", c.path, body=LINES) + http.build("POST", c.path, body=b"next"))
        assert connection.response().text == repr([b"one\n", b"two\n", b"three"])
        assert connection.response().text == repr([b"next"])


def test_generator_that_calls_start_response_at_its_first_next(case) -> None:
    """Status and headers of a lazy application are kept."""

    def app(environ, start_response):
        start_response("201 Made Late", [("Content-Type", "text/plain"), ("X-Late", "yes")])
        yield b"late"

    r = case(app).get()
    assert (r.status, r.reason, r.header("X-Late"), r.body) == (201, "Made Late", "yes", b"late")


def test_write_callable(case) -> None:
    """start_response returns `write`; what it gets comes before what is iterated."""

    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"written ")
        write(b"twice ")
        return [b"returned"]

    assert case(app).get().body == b"written twice returned"


def test_start_response_again_with_exc_info(case) -> None:
    """Before the first byte the new status and headers replace the old ones entirely."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/html"), ("X-Old", "1"), ("Set-Cookie", "old=1")])
        try:
            raise ValueError
        except ValueError:
            import sys

            start_response("503 Not Now", [("Content-Type", "text/plain"), ("X-New", "1")], sys.exc_info())
        return [b"replaced"]

    r = case(app).get()
    assert (r.status, r.reason, r.body) == (503, "Not Now", b"replaced")
    assert r.header("X-New") == "1" and r.header("Content-Type") == "text/plain"
    assert r.header("X-Old") is None and r.header("Set-Cookie") is None


def test_body_suppressed_on_head(case) -> None:
    """A body that the application gives for HEAD is not sent: the next answer follows the head directly."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return (part for part in (b"body of ", environ["REQUEST_METHOD"].encode()))

    c = case(app)
    with c.server.connect() as connection:
        connection.send(http.build("HEAD", c.path) + http.build("GET", c.path))
        assert connection.response("HEAD").body == b""
        assert connection.response("GET").body == b"body of GET"


def test_chunked_request_body_reaches_the_application(case) -> None:
    """A chunked body is read as any other."""

    def app(environ, start_response):
        return text(start_response, environ["wsgi.input"].read())

    r = case(app).get(method="POST", headers=[("Transfer-Encoding", "chunked")], body=http.chunked(b"chun", b"ked"))
    assert (r.status, r.body) == (200, b"chunked")


def test_two_pipelined_gets_answered(case) -> None:
    """Both are answered, in their order."""

    def app(environ, start_response):
        return text(start_response, environ["QUERY_STRING"])

    c = case(app)
    with c.server.connect() as connection:
        connection.send(http.build("GET", c.path + "?1") + http.build("GET", c.path + "?2"))
        assert [connection.response().text, connection.response().text] == ["1", "2"]


def test_repeated_request_header(case) -> None:
    """A repeated field is one value, joined by commas, in order (RFC 9110, 5.3)."""

    def app(environ, start_response):
        return text(start_response, environ["HTTP_X_TWICE"])

    r = case(app).get(headers=[("X-Twice", "a"), ("Accept", "*/*"), ("x-twice", "b")])
    assert [value.strip() for value in r.text.split(",")] == ["a", "b"]


def test_header_name_with_underscore(case) -> None:
    """It never reaches the application, where it could pass for the name with a dash."""

    def app(environ, start_response):
        return text(start_response, json.dumps(sorted(k for k in environ if "REAL" in k)))

    assert case(app).get(headers=[("X_Real_Ip", "forged")]).text == "[]"


def counting(environ, start_response):
    note(environ["PATH_INFO"].rpartition("/")[2])
    return text(start_response, environ["wsgi.input"].read())


def refused(server: Site, case, raw: bytes) -> None:
    """The server answers 4xx or 5xx and the application has not run."""
    server.allow_log(server.CLIENT_FAULTS)
    c = case(counting)
    with server.connect() as connection:
        connection.send(raw.replace(b"/PATH", c.path.encode()))
        r = connection.response()
        assert 400 <= r.status < 600
    assert c.notes() == []


def test_content_length_with_transfer_encoding(server: Site, case) -> None:
    """RFC 9112, 6.3: refused, or read by Transfer-Encoding alone and the connection closed; nothing else is a request."""
    server.allow_log(server.CLIENT_FAULTS)
    c = case(counting)
    body = b"3\r\nabc\r\n0\r\n\r\n"
    hidden = http.build("GET", c.path + "/hidden")
    fields = [("Content-Length", str(len(body + hidden))), ("Transfer-Encoding", "chunked")]
    with server.connect() as connection:
        connection.send(http.build("POST", c.path + "/first", fields) + body + hidden)
        r = connection.response()
        assert r.status >= 400 or r.body == b"abc"
        assert connection.ended()
    assert "hidden" not in c.notes()


def test_two_host_headers(server: Site, case) -> None:
    """RFC 9112, 3.2: 400."""
    refused(server, case, b"GET /PATH HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")


def test_space_before_the_colon(server: Site, case) -> None:
    """RFC 9112, 5.1: 400."""
    refused(server, case, b"GET /PATH HTTP/1.1\r\nHost: a\r\nX-Field : b\r\n\r\n")


def test_nul_in_a_header_value(server: Site, case) -> None:
    """RFC 9110, 5.5: refused."""
    refused(server, case, b"GET /PATH HTTP/1.1\r\nHost: a\r\nX-Field: b\0c\r\n\r\n")


def test_content_length_plus_three(server: Site, case) -> None:
    """RFC 9110, 8.6: digits only."""
    refused(server, case, b"POST /PATH HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc")


def test_line_ended_by_bare_lf(server: Site, case) -> None:
    """RFC 9112, 2.2: a recipient may take a single LF for the end of a line, or refuse it; it never hangs, and what
    follows is never taken for another request's field or the other way round."""
    server.allow_log(server.CLIENT_FAULTS)
    c = case(counting)
    with server.connect() as connection:
        raw = f"GET {c.path}/first HTTP/1.1\nHost: a\nX-Field: b\n\n"
        connection.send(raw.encode() + http.build("GET", c.path + "/second", [("Connection", "close")]))
        first = connection.response()
        if first.status == 200:
            assert connection.response().status == 200
            assert c.notes() == ["first", "second"]
        else:
            assert 400 <= first.status < 500 and connection.ended()
            assert c.notes() == []


def test_http11_without_host(server: Site, case) -> None:
    """RFC 9112, 3.2: 400."""
    refused(server, case, b"GET /PATH HTTP/1.1\r\nX-Field: b\r\n\r\n")


@pytest.mark.parametrize("value", ["a\r\nX-Injected: 1", "a\nX-Injected: 1", "a\rX-Injected: 1", "a\r\n\r\n<html>"])
def test_crlf_inside_a_response_header(server: Site, case, value: str) -> None:
    """500: neither injected, nor dropped silently."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Field", value)])
        return [b"body"]

    server.expect_log(r"ValueError: carriage return/line feed character in header value: b'a")
    server.allow_log(server.TRACEBACK)
    r = case(app).get()
    assert r.status == 500 and r.header("X-Injected") is None and r.header("X-Field") is None
    assert not r.body.startswith(b"<html>") or b"Internal Server Error" in r.body


@pytest.mark.parametrize("form", ["list", "blocks", "write"])
def test_application_sends_more_than_its_content_length(server: Site, case, form: str) -> None:
    """The surplus is cut and logged; the next answer is intact."""

    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
        if form == "write":
            write(b"12345678")
            return []
        return [b"12345678"] if form == "list" else iter([b"123", b"456", b"789"])

    server.expect_log("MWR0215: .* more than its Content-Length")
    c = case(app)
    with server.connect() as connection:
        r = c.request(connection)
        assert (r.status, r.body, r.header("Content-Length")) == (200, b"12345", "5")
        assert connection.request(target="/exact?next").text == "exact:next"


def test_process_environment_does_not_leak_into_environ(case) -> None:
    """Nothing of os.environ is in environ that the request did not bring."""

    def app(environ, start_response):
        same = [k for k, v in os.environ.items() if environ.get(k) == v and not k.startswith("SERVER_")]
        return text(start_response, json.dumps(same))

    assert case(app).get().text == "[]"


@pytest.mark.parametrize("kind", ["file", "object"])
def test_file_wrapper(case, kind: str) -> None:
    """It is there, sends a file, or whatever can be read, and closes it."""

    def app(environ, start_response):
        import io
        import tempfile

        class File(io.BytesIO):
            def close(self):
                note("closed")
                super().close()

        f = File() if kind == "object" else tempfile.TemporaryFile()  # noqa: SIM115
        f.write(b"content of a file" * 1000)
        f.seek(0)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return environ["wsgi.file_wrapper"](f, 1024)

    c = case(app)
    r = c.get()
    assert r.complete and r.body == b"content of a file" * 1000
    if kind == "object":
        c.wait_notes("closed")


@pytest.mark.parametrize("how", ["length", "chunked", "none"])
def test_input_terminated(case, how: str) -> None:
    """`wsgi.input_terminated` is True, and reading without a length ends, whatever the framing."""

    def app(environ, start_response):
        assert environ["wsgi.input_terminated"] is True
        return text(start_response, environ["wsgi.input"].read())

    c = case(app)
    if how == "none":
        assert c.get().body == b""
    elif how == "length":
        assert c.get(method="POST", body=b"abc").body == b"abc"
    else:
        fields = [("Transfer-Encoding", "chunked")]
        assert c.get(method="POST", headers=fields, body=http.chunked(b"abc")).body == b"abc"


def test_early_hints(case) -> None:
    """`wsgi.early_hints`, an extension that most servers lack, is either absent or sends 103 before the answer: an
    application that asks for it as it must (by `in`) works."""

    def app(environ, start_response):
        if "wsgi.early_hints" in environ:
            environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
        return text(start_response, str("wsgi.early_hints" in environ))

    r = case(app).get()
    assert r.status == 200
    assert r.interim == ([103] if r.text == "True" else [])
