"""W7: Content-Length. Given automatically where the server knows it, never where a status or method has none; the body
always has what was declared, or the client sees that it does not (test_truncation.py)."""

from __future__ import annotations

import pytest

from harness import http
from harness.case import text
from harness.site import Site


def answer(environ, start_response):
    """`status,form,size[,declared]` of the query; method HEAD gets the body as well."""
    status, form, size, *declared = environ["QUERY_STRING"].split(",")
    fields = [] if status in ("204", "304") else [("Content-Type", "text/plain")]
    fields += [("Content-Length", d) for d in declared]
    body = b"x" * int(size)
    write = start_response(f"{status} Some Reason", fields)
    if form == "write":
        write(body)
        return []
    half = len(body) // 2

    class Items(list):
        pass

    made = {
        "list": lambda: [body],
        "tuple": lambda: (body,),
        "pair": lambda: [body[:half], body[half:]],
        "empty": lambda: [],
        "subclass": lambda: Items([body]),
        "iterator": lambda: iter([body]),
    }
    return made[form]()


def length(r: http.Response) -> str | None:
    return r.header("Content-Length")


@pytest.mark.parametrize("form", ["list", "tuple"])
@pytest.mark.parametrize("size", [0, 1, 1000, 65535, 65536, 65537, 1_000_000])
def test_automatic(server: Site, case, form: str, size: int) -> None:
    """PEP 3333: an exact list or tuple of one item has the length of the item, whatever its size."""
    r = case(answer).get(f"?200,{form},{size}")
    assert (r.status, length(r), r.body) == (200, str(size), b"x" * size)


@pytest.mark.parametrize("size", [2, 1000, 65536, 65538, 300_000])
def test_several_items(server: Site, case, size: int) -> None:
    """Several items that are sent together may have their sum as length: then it is right; else the body is framed
    otherwise. The client gets every byte either way."""
    r = case(answer).get(f"?200,pair,{size}")
    assert r.complete and r.body == b"x" * size
    assert length(r) in (None, str(size))


@pytest.mark.parametrize("form", ["subclass", "iterator", "write", "empty"])
def test_not_counted_beforehand(server: Site, case, form: str) -> None:
    """What may iterate differently than it looks is not measured: no length but that of what was really sent."""
    r = case(answer).get(f"?200,{form},100000")
    body = b"" if form == "empty" else b"x" * 100000
    assert r.complete and r.body == body and length(r) in (None, str(len(body)))


@pytest.mark.parametrize("form", ["list", "pair", "iterator", "write"])
def test_the_applications_own(server: Site, case, form: str) -> None:
    """A length of the application's is kept."""
    r = case(answer).get(f"?200,{form},5000,5000")
    assert (length(r), r.framing, r.body) == ("5000", "length", b"x" * 5000)


@pytest.mark.parametrize("form", ["list", "pair", "iterator", "write"])
@pytest.mark.parametrize("size", [10, 70000, 400_000])
def test_surplus_is_cut(server: Site, case, form: str, size: int) -> None:
    """More bytes than declared: cut and logged, and the next answer on the connection is intact."""
    server.expect_log(f"MWR0215: response body has {size - 7} bytes more than its Content-Length; they were cut")
    c = case(answer)
    with server.connect() as connection:
        connection.send(http.build("GET", f"{c.path}?200,{form},{size},7") + http.build("GET", "/exact?next"))
        r = connection.response()
        assert (length(r), r.body) == ("7", b"x" * 7)
        assert connection.response().text == "exact:next"


def test_declared_zero(server: Site, case) -> None:
    """Content-Length: 0 with a body."""
    server.expect_log("MWR0215: response body has 10 bytes more")
    r = case(answer).get("?200,iterator,10,0")
    assert (length(r), r.body, r.complete) == ("0", b"", True)


@pytest.mark.parametrize("form", ["list", "pair", "iterator", "write", "empty"])
@pytest.mark.parametrize("status", ["204", "304"])
@pytest.mark.parametrize("size", [0, 100])
def test_status_without_body(server: Site, case, status: str, form: str, size: int) -> None:
    """RFC 9110, 15.3.5 and 15.4.5: no body, even if the application gives one, and no length made up for it; what
    follows on the connection is the next answer."""
    c = case(answer)
    with server.connect() as connection:
        connection.send(http.build("GET", f"{c.path}?{status},{form},{size}") + http.build("GET", "/exact?next"))
        r = connection.response()
        assert (r.status, length(r), r.all("Transfer-Encoding")) == (int(status), None, [])
        assert connection.response().text == "exact:next"


def test_304_with_a_length(server: Site, case) -> None:
    """RFC 9110, 8.6: 304 may carry the length that 200 would have had; no byte follows, and none is missed."""
    c = case(answer)
    with server.connect() as connection:
        connection.send(http.build("GET", f"{c.path}?304,empty,0,500") + http.build("GET", "/exact?next"))
        assert length(connection.response()) in (None, "500")
        assert connection.response().text == "exact:next"


@pytest.mark.parametrize("form", ["list", "pair", "iterator", "write"])
def test_head(server: Site, case, form: str) -> None:
    """RFC 9110, 9.3.2: the head of GET without the body; a length is that of GET or absent."""
    c = case(answer)
    with server.connect() as connection:
        target = f"{c.path}?200,{form},5000"
        connection.send(http.build("HEAD", target) + http.build("GET", target))
        head, whole = connection.response("HEAD"), connection.response()
        assert head.body == b"" and head.status == 200 and whole.body == b"x" * 5000
        assert length(head) in (None, "5000")
        ours = {"date", "content-length", "transfer-encoding"}
        assert [h for h in head.headers if h[0].lower() not in ours] == [
            h for h in whole.headers if h[0].lower() not in ours
        ]


@pytest.mark.parametrize("form", ["empty", "list", "iterator"])
def test_head_with_nothing(server: Site, case, form: str) -> None:
    """An application that gives no body for HEAD has not said that GET has none: no length is made up."""
    c = case(answer)
    with server.connect() as connection:
        connection.send(http.build("HEAD", f"{c.path}?200,{form},0") + http.build("GET", "/exact?next"))
        assert length(connection.response("HEAD")) is None
        assert connection.response().text == "exact:next"


@pytest.mark.parametrize("form", ["empty", "list", "iterator"])
def test_head_keeps_the_applications_length(server: Site, case, form: str) -> None:
    """The length that the application declares for HEAD stands, with or without a body; nothing is missed."""
    size = 0 if form == "empty" else 5000
    c = case(answer)
    with server.connect() as connection:
        connection.send(http.build("HEAD", f"{c.path}?200,{form},{size},5000") + http.build("GET", "/exact?next"))
        assert length(connection.response("HEAD")) == "5000"
        assert connection.response().text == "exact:next"


@pytest.mark.parametrize("form", ["list", "pair", "iterator", "write", "empty"])
def test_http10(server: Site, case, form: str) -> None:
    """HTTP/1.0 gets no chunks: a length, or the end of the connection."""
    size = 0 if form == "empty" else 5000
    r = case(answer).get(f"?200,{form},{size}", version="1.0")
    assert r.all("Transfer-Encoding") == [] and r.complete and r.body == b"x" * size


def test_http10_keep_alive(server: Site, case) -> None:
    """HTTP/1.0 with keep-alive: where a length is given the connection may stay open and the next answer is intact."""
    c = case(answer)
    with server.connect() as connection:
        keep = [("Connection", "keep-alive")]
        for _ in range(2):
            r = connection.request("GET", f"{c.path}?200,list,5000", headers=keep, version="1.0")
            assert (length(r), r.body) == ("5000", b"x" * 5000)
            if (r.header("Connection") or "").lower() != "keep-alive":
                return


@pytest.mark.parametrize("declared", [0, 10, 1000])
def test_file_wrapper_with_a_length(server: Site, case, declared: int) -> None:
    """A regular file is sent up to the declared length, without a word: the application has asked for a part."""

    def app(environ, start_response):
        import tempfile

        f = tempfile.TemporaryFile()  # noqa: SIM115
        f.write(bytes(range(250)) * 4)
        f.seek(0)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(declared))])
        return environ["wsgi.file_wrapper"](f)

    r = case(app).get()
    assert (length(r), r.body) == (str(declared), (bytes(range(250)) * 4)[:declared])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_file_wrapper_without_a_length(server: Site, case, method: str) -> None:
    """A regular file has the length from its position to its end."""

    def app(environ, start_response):
        import tempfile

        f = tempfile.TemporaryFile()  # noqa: SIM115
        f.write(b"x" * 1000)
        f.seek(100)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return environ["wsgi.file_wrapper"](f)

    r = case(app).get(method=method)
    assert (length(r), r.body) == ("900", b"" if method == "HEAD" else b"x" * 900)


def test_validated(server: Site, rightful) -> None:
    """The same under wsgiref.validate, whose iterator is no list: framed by the server."""

    def app(environ, start_response):
        return text(start_response, "checked")

    r = rightful(app).get()
    assert (length(r), r.body) == ("7", b"checked")
