"""W6: start_response and write, by PEP 3333 ("The start_response() Callable", "Error Handling") and RFC 9110, 5 and 15;
exceptions have mod_wsgi's types and texts where it has the check."""

from __future__ import annotations

import pytest

from harness.case import note, text
from harness.site import Site

OK = [("Content-Type", "text/plain")]

#: arguments of start_response, and the exception that it raises in the application
WRONG = {
    "status-int": ((200, OK), "TypeError: must be str, not int"),
    "status-bytes": ((b"200 OK", OK), "TypeError: must be str, not bytes"),
    "status-none": ((None, OK), "TypeError: must be str, not NoneType"),
    "status-empty": (("", OK), "ValueError: status code must be a 3 digit integer: b''"),
    "status-two-digits": (("20", OK), "ValueError: status code must be a 3 digit integer: b'20'"),
    "status-four-digits": (("2000 OK", OK), "ValueError: status code must be a 3 digit integer: b'2000 OK'"),
    "status-word-first": (("OK 200", OK), "ValueError: status code must be a 3 digit integer: b'OK 200'"),
    "status-blank-first": ((" 200 OK", OK), "ValueError: status code must be a 3 digit integer: b' 200 OK'"),
    "status-plus": (("+20 OK", OK), "ValueError: status code must be a 3 digit integer: b'+20 OK'"),
    "status-superscript": (("20\xb2 OK", OK), r"ValueError: status code must be a 3 digit integer: b'20\xb2 OK'"),
    "status-no-space": (("200OK", OK), "ValueError: no space following status code: b'200OK'"),
    "status-tab": (("200\tOK", OK), r"ValueError: no space following status code: b'200\tOK'"),
    "status-crlf": (
        ("200 OK\r\nX-Injected: 1", OK),
        r"ValueError: control character in status reason phrase: b'200 OK\r\nX-Injected: 1'",
    ),
    "status-nul": (("200 O\0K", OK), r"ValueError: control character in status reason phrase: b'200 O\x00K'"),
    "status-delete": (("200 O\x7fK", OK), r"ValueError: control character in status reason phrase: b'200 O\x7fK'"),
    "status-not-latin-1": (("200 \u20ac", OK), "UnicodeEncodeError: 'latin-1' codec can't encode character"),
    "status-000": (("000 Nothing", OK), "ValueError: status code is not that of a final response: b'000 Nothing'"),
    "status-100": (("100 Continue", OK), "ValueError: status code is not that of a final response: b'100 Continue'"),
    "status-101": (("101 Switching", OK), "ValueError: status code is not that of a final response: b'101 Switching'"),
    "status-103": (("103 Early Hints", OK), "ValueError: status code is not that of a final response: b'103 Early"),
    "headers-dict": (("200 OK", {"A": "b"}), "TypeError: headers must be a list, not dict"),
    "headers-tuple": (("200 OK", (("A", "b"),)), "TypeError: headers must be a list, not tuple"),
    "headers-none": (("200 OK", None), "TypeError: headers must be a list, not NoneType"),
    "header-list": (("200 OK", [["A", "b"]]), "TypeError: each header must be a 2-tuple, not list"),
    "header-str": (("200 OK", ["A: b"]), "TypeError: each header must be a 2-tuple, not str"),
    "header-three": (("200 OK", [("A", "b", "c")]), "ValueError: each header must be a 2-tuple, got length 3"),
    "header-one": (("200 OK", [("A",)]), "ValueError: each header must be a 2-tuple, got length 1"),
    "name-bytes": (("200 OK", [(b"A", "b")]), "TypeError: must be str, not bytes"),
    "name-empty": (("200 OK", [("", "b")]), "ValueError: header name is empty"),
    "name-space": (("200 OK", [("A B", "b")]), "ValueError: space character in header name: b'A B'"),
    "name-trailing-space": (("200 OK", [("A ", "b")]), "ValueError: space character in header name: b'A '"),
    "name-crlf": (
        ("200 OK", [("A\r\nX-Injected", "b")]),
        r"ValueError: control character in header name: b'A\r\nX-Injected'",
    ),
    "name-tab": (("200 OK", [("A\tB", "b")]), r"ValueError: control character in header name: b'A\tB'"),
    "name-nul": (("200 OK", [("A\0", "b")]), r"ValueError: control character in header name: b'A\x00'"),
    "name-colon": (("200 OK", [("A:B", "c")]), "ValueError: character not allowed in header name: b'A:B'"),
    "name-bracket": (("200 OK", [("A[0]", "c")]), "ValueError: character not allowed in header name: b'A[0]'"),
    "name-high": (("200 OK", [("Caf\xe9", "c")]), r"ValueError: character not allowed in header name: b'Caf\xe9'"),
    "name-not-latin-1": (("200 OK", [("\u20ac", "c")]), "UnicodeEncodeError: 'latin-1' codec can't encode character"),
    "value-int": (("200 OK", [("A", 1)]), "TypeError: must be str, not int"),
    "value-bytes": (("200 OK", [("A", b"b")]), "TypeError: must be str, not bytes"),
    "value-none": (("200 OK", [("A", None)]), "TypeError: must be str, not NoneType"),
    "value-lf": (
        ("200 OK", [("A", "b\nX-Injected: 1")]),
        r"ValueError: carriage return/line feed character in header value: b'b\nX-Injected: 1'",
    ),
    "value-nul": (("200 OK", [("A", "b\0c")]), r"ValueError: control character in header value: b'b\x00c'"),
    "value-escape": (("200 OK", [("A", "b\x1b[0m")]), r"ValueError: control character in header value: b'b\x1b[0m'"),
    "value-not-latin-1": (("200 OK", [("A", "\u20ac")]), "UnicodeEncodeError: 'latin-1' codec can't encode character"),
    "length-word": (("200 OK", [("Content-Length", "ten")]), "ValueError: invalid Content-Length header value: 'ten'"),
    "length-negative": (
        ("200 OK", [("Content-Length", "-1")]),
        "ValueError: invalid Content-Length header value: '-1'",
    ),
    "length-plus": (("200 OK", [("content-length", "+2")]), "ValueError: invalid Content-Length header value: '+2'"),
    "length-empty": (("200 OK", [("Content-Length", "")]), "ValueError: invalid Content-Length header value: ''"),
    "length-list": (
        ("200 OK", [("Content-Length", "2, 2")]),
        "ValueError: invalid Content-Length header value: '2, 2'",
    ),
    "length-twice": (
        ("200 OK", [("Content-Length", "2"), ("content-length", "3")]),
        "ValueError: Content-Length is given twice with different values",
    ),
    "exc-info-list": (
        ("200 OK", OK, [1, 2, 3]),
        "RuntimeError: start_response() argument 'exc_info' must be a 3-tuple",
    ),
    "exc-info-pair": (("200 OK", OK, (1, 2)), "RuntimeError: start_response() argument 'exc_info' must be a 3-tuple"),
    "one-argument": (("200 OK",), "TypeError: "),
    "four-arguments": (("200 OK", OK, None, None), "TypeError: "),
}
#: PEP 3333, "Other HTTP Features", and RFC 9110, 7.6.1
CONNECTION_FIELDS = [
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
]
for field in CONNECTION_FIELDS:
    message = f"ValueError: header of the connection, which belongs to the server: b'{field.swapcase()}'"
    WRONG["hop-by-hop-" + field.lower()] = (("200 OK", [*OK, (field.swapcase(), "x")]), message)


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_arguments_raise(server: Site, case, name: str) -> None:
    """PEP 3333: "servers should check for errors in the headers at the time start_response is called, so that an error
    can be raised while the application is still running": the application sees the exception and can answer itself."""
    arguments, expected = WRONG[name]

    def app(environ, start_response):
        try:
            start_response(*arguments)
        except Exception as e:
            return text(start_response, f"{type(e).__name__}: {e}")
        return [b"accepted"]

    r = case(app).get()
    assert r.status == 200 and r.text.startswith(expected), r.text
    assert r.header("X-Injected") is None


@pytest.mark.parametrize("name", ["status-crlf", "name-crlf", "value-lf", "value-int", "hop-by-hop-transfer-encoding"])
def test_wrong_arguments_unhandled(server: Site, case, name: str) -> None:
    """DESIGN 9: an application that does not handle it gets 500 and a traceback in the log: nothing is repaired or
    dropped."""
    arguments, expected = WRONG[name]

    def app(environ, start_response):
        start_response(*arguments)
        return [b"accepted"]

    kind = expected.split(":")[0]
    server.expect_log(f"MWR0430: exception {kind} occurred processing WSGI script")
    server.expect_log(f"{kind}: ")
    server.allow_log(server.TRACEBACK)
    c = case(app)
    with server.connect() as connection:
        r = c.request(connection)
        assert r.status == 500 and r.header("X-Injected") is None and b"accepted" not in r.body
    assert server.get("/exact?on").text == "exact:on"


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        ("200 OK", 200, "OK"),
        ("201 Created", 201, "Created"),
        ("226 I'm Used", 226, "I'm Used"),
        ("299 Custom Reason", 299, "Custom Reason"),
        ("404 Nothing Here", 404, "Nothing Here"),
        ("418 I'm a teapot", 418, "I'm a teapot"),
        ("451 Caf\xe9 fermé", 451, "Caf\xe9 fermé"),
        ("500 Own Error", 500, "Own Error"),
        ("502 Own Gateway", 502, "Own Gateway"),
        ("599 Far", 599, "Far"),
        ("200 Two  Words\tTabbed", 200, "Two  Words\tTabbed"),
    ],
)
def test_status(server: Site, case, line: str, status: int, reason: str) -> None:
    """The application's status line with its own reason, and its own body also for errors."""

    def app(environ, start_response):
        return text(start_response, "body", line)

    r = case(app).get()
    assert (r.status, r.reason, r.body) == (status, reason, b"body")


@pytest.mark.parametrize("line", ["200", "200 "])
def test_status_without_reason(server: Site, case, line: str) -> None:
    """The reason phrase may be empty (RFC 9112, 4)."""

    def app(environ, start_response):
        return text(start_response, "body", line)

    r = case(app).get()
    assert (r.status, r.body) == (200, b"body")


def test_headers(server: Site, rightful) -> None:
    """Names, values and order are kept; Set-Cookie is never folded; an empty value is a value."""

    def app(environ, start_response):
        fields = [
            ("Content-Type", "Text/Plain; Charset=UTF-8"),
            ("X-Twice", "one"),
            ("Set-Cookie", "a=1; Path=/"),
            ("X-Twice", "two"),
            ("Set-Cookie", "b=2, with comma"),
            ("X-Latin", "caf\xe9"),
            ("X-Empty", ""),
            ("ETag", '"x"'),
            ("Last-Modified", "Sat, 29 Oct 1994 19:43:31 GMT"),
            ("Vary", "Cookie"),
            ("Content-Length", "2"),
        ]
        start_response("200 OK", fields)
        return [b"ok"]

    r = rightful(app).get()
    assert r.all("Set-Cookie") == ["a=1; Path=/", "b=2, with comma"]
    assert [v.strip() for value in r.all("X-Twice") for v in value.split(",")] == ["one", "two"]
    assert r.header("X-Latin") == "caf\xe9" and r.header("X-Empty") == ""
    assert r.header("Content-Type").lower() == "text/plain; charset=utf-8"
    assert r.header("ETag") == '"x"' and r.header("Last-Modified") == "Sat, 29 Oct 1994 19:43:31 GMT"
    assert r.header("Content-Length") == "2" and r.body == b"ok"


def test_tab_in_a_value(server: Site, case) -> None:
    """RFC 9110, 5.5: a tab is white space and may be part of a value."""

    def app(environ, start_response):
        return text(start_response, "x", headers=[("X-Tab", "a\tb")])

    assert case(app).get().header("X-Tab") == "a\tb"


def test_many_headers(server: Site, rightful) -> None:
    """A large head arrives whole."""

    def app(environ, start_response):
        fields = [("Content-Type", "text/plain")] + [(f"X-Field-{i}", "v" * 200) for i in range(200)]
        start_response("200 OK", fields)
        return [b"ok"]

    r = rightful(app).get()
    assert [r.header(f"X-Field-{i}") for i in range(200)] == ["v" * 200] * 200


def test_the_servers_own_fields(server: Site, rightful) -> None:
    """PEP 3333: Date and Server are the server's where the application gives none, and there once."""

    def app(environ, start_response):
        return text(start_response, "x")

    r = rightful(app).get()
    assert len(r.all("Date")) == 1 and len(r.all("Server")) == 1


def test_headers_list_may_change_afterwards(server: Site, case) -> None:
    """What counts is what the list holds when start_response is called."""

    def app(environ, start_response):
        fields = [("Content-Type", "text/plain"), ("X-Kept", "1")]
        start_response("200 OK", fields)
        fields.clear()
        fields.append(("X-Late", "1"))
        return [b"ok"]

    r = case(app).get()
    assert r.header("X-Kept") == "1" and r.header("X-Late") is None


def test_not_called(server: Site, case) -> None:
    """PEP 3333: an application has to call it before the first byte."""

    def app(environ, start_response):
        return [b"body without start_response"]

    server.expect_log("RuntimeError: start_response\\(\\) must be called before response content is produced")
    server.allow_log(server.TRACEBACK)
    assert case(app).get().status == 500


def test_not_called_and_no_body(server: Site, case) -> None:
    """The same where there is no body at all."""

    def app(environ, start_response):
        return iter([b"", b""])

    server.expect_log("RuntimeError: start_response\\(\\) must be called before response content is produced")
    server.allow_log(server.TRACEBACK)
    assert case(app).get().status == 500


def test_head_waits_for_the_first_bytes(server: Site, rightful) -> None:
    """PEP 3333: headers are not sent before the first non-empty block: an error before it can still replace them."""

    def app(environ, start_response):
        import sys

        start_response("200 OK", [("Content-Type", "text/plain"), ("X-First", "1")])
        yield b""
        try:
            raise ValueError("deliberate")
        except ValueError:
            start_response("500 Replaced", [("Content-Type", "text/plain")], sys.exc_info())
        yield b""
        yield b"error page"

    r = rightful(app).get()
    assert (r.status, r.reason, r.header("X-First"), r.body) == (500, "Replaced", None, b"error page")


def test_twice_before_the_first_byte(server: Site, case) -> None:
    """A second call without exc_info before anything is sent replaces the first, as in mod_wsgi. PEP 3333 calls it an
    error of the application, which wsgiref.validate shows."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-First", "1")])
        start_response("404 Second", [("Content-Type", "text/plain"), ("X-Second", "1")])
        return [b"x"]

    r = case(app).get()
    assert (r.status, r.header("X-First"), r.header("X-Second")) == (404, None, "1")


@pytest.mark.parametrize("by", ["yield", "write"])
def test_twice_after_the_first_byte(server: Site, case, by: str) -> None:
    """Without exc_info: RuntimeError; the answer goes on as it began."""

    def app(environ, start_response):
        def again():
            try:
                start_response("500 Oops", [])
            except RuntimeError as e:
                note(str(e))

        def parts():
            yield b"sent "
            again()
            yield b"and whole"

        write = start_response("200 OK", [("Content-Type", "text/plain")])
        if by == "yield":
            return parts()
        write(b"sent ")
        again()
        return [b"and whole"]

    c = case(app)
    r = c.get()
    assert (r.status, r.body, r.complete) == (200, b"sent and whole", True)
    assert c.notes() == ["start_response() called more than once without exc_info"]


@pytest.mark.parametrize("by", ["yield", "write"])
def test_exc_info_after_the_first_byte(server: Site, case, by: str) -> None:
    """PEP 3333: with exc_info it raises that exception, with its traceback; the answer is cut."""

    def app(environ, start_response):
        import sys

        def fail():
            try:
                raise ZeroDivisionError("deliberate-original")
            except ZeroDivisionError:
                info = sys.exc_info()
            # from here on the tuple alone has it
            info[1].__traceback__ = None
            try:
                start_response("500 Oops", [("Content-Type", "text/plain")], info)
            except BaseException as e:
                note(f"{e is info[1]} {e.__traceback__.tb_next is info[2]}")
                raise

        def parts():
            yield b"sent" * 10
            fail()
            yield b"never"

        write = start_response("200 OK", [("Content-Type", "text/plain")])
        if by == "yield":
            return parts()
        write(b"sent" * 10)
        fail()
        return [b"never"]

    server.expect_log("MWR0430: exception ZeroDivisionError")
    server.expect_log("deliberate-original")
    server.expect_log(", in fail$")
    server.allow_log(server.TRACEBACK)
    c = case(app)
    r = c.get()
    assert r.truncated and b"never" not in r.body
    assert c.notes() == ["True True"]


def test_exc_info_none(server: Site, case) -> None:
    """None is no exc_info."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")], None)
        return [b"x"]

    assert case(app).get().body == b"x"


def test_write_returns_nothing_and_takes_bytes(server: Site, rightful) -> None:
    """write() takes bytes, also empty ones, and returns None."""

    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        out = [write(b"a"), write(b""), write(b"b" * 100_000)]
        write(repr(out).encode())
        return []

    assert rightful(app).get().body == b"a" + b"b" * 100_000 + b"[None, None, None]"


@pytest.mark.parametrize("item", ["text", None, 5])
def test_write_of_other_types(server: Site, case, item: object) -> None:
    """TypeError, and the answer goes on."""

    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"before ")
        try:
            write(item)
        except TypeError as e:
            write(str(e).encode())
        return [b" after"]

    expected = f"before write() argument must be bytes, not {type(item).__name__} after"
    assert case(app).get().text == expected


def test_write_before_an_iterable_that_fails(server: Site, case) -> None:
    """What write() has sent is cut visibly when the application then fails."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])(b"written")
        return [b"", "text"]

    server.expect_log("TypeError: response iterable must yield bytes, not str")
    server.allow_log(server.TRACEBACK)
    assert case(app).get().truncated


def test_kept_beyond_the_request(server: Site, case) -> None:
    """start_response and write of a request that has ended raise RuntimeError and reach nobody's connection."""

    def app(environ, start_response):
        kept = vars(__import__("sys").modules["__main__"]).setdefault("kept_write", {})
        if environ["QUERY_STRING"] == "keep":
            kept["start_response"] = start_response
            kept["write"] = start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"kept"]
        out = []
        for use in (lambda: kept["write"](b"forged"), lambda: kept["start_response"]("200 OK", [])):
            try:
                use()
            except RuntimeError as e:
                out.append(str(e))
        return text(start_response, repr(out))

    c = case(app, "/single")
    assert c.get("?keep").body == b"kept"
    expected = ["write() called after request completed", "start_response() called after request completed"]
    assert c.get("?use").text == repr(expected)
