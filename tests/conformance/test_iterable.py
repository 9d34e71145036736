"""W6: what an application may return, when its parts are sent, what becomes of errors, and close() (PEP 3333, "The
Server/Gateway Side", "Buffering and Streaming")."""

from __future__ import annotations

import json

import pytest

from harness import http
from harness.case import note, text
from harness.site import Site

FORMS = {
    "list": b"one,two,three",
    "empty-list": b"",
    "list-of-empty": b"",
    "tuple": b"one,two",
    "empty-tuple": b"",
    "set": b"only",
    "dict": b"keyvalue",
    "generator": b"g1,g2",
    "empty-generator": b"",
    "iterator": b"i1,i2",
    "getitem": b"s0,s1,",
    "map": b"m1m2",
    "file-object": b"line 1\nline 2\n",
    "list-subclass": b"other items",
    "tuple-subclass": b"other items",
    "large-list": b"x" * 300_000,
}


def forms(environ, start_response):
    """The iterable that the query names."""
    import io

    class Items(list):
        def __iter__(self):
            return iter([b"other ", b"items"])

    class Pair(tuple):
        def __iter__(self):
            return iter([b"other ", b"items"])

    class Sequence:
        def __getitem__(self, i):
            if i > 1:
                raise IndexError
            return b"s%d," % i

    made = {
        "list": lambda: [b"one,", b"two,", b"", b"three"],
        "empty-list": lambda: [],
        "list-of-empty": lambda: [b"", b""],
        "tuple": lambda: (b"one,", b"two"),
        "empty-tuple": lambda: (),
        "set": lambda: {b"only"},
        "dict": lambda: {b"key": 1, b"value": 2},
        "generator": lambda: (part for part in (b"g1,", b"", b"g2")),
        "empty-generator": lambda: (part for part in ()),
        "iterator": lambda: iter([b"i1,", b"i2"]),
        "getitem": lambda: Sequence(),
        "map": lambda: map(str.encode, ["m1", "m2"]),
        "file-object": lambda: io.BytesIO(b"line 1\nline 2\n"),
        "list-subclass": lambda: Items([b"never"]),
        "tuple-subclass": lambda: Pair((b"never",)),
        "large-list": lambda: [b"x" * 100_000] * 3,
    }
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Form", "1")])
    return made[environ["QUERY_STRING"]]()


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_forms(server: Site, rightful, form: str, version: str) -> None:
    """Any iterable of bytes."""
    r = rightful(forms).get("?" + form, version=version)
    assert (r.status, r.reason, r.body, r.complete, r.header("X-Form")) == (200, "OK", FORMS[form], True, "1")


def test_forms_on_one_connection(server: Site, case) -> None:
    """Each leaves the connection fit for the next request."""
    c = case(forms)
    with server.connect() as connection:
        for form, body in [*FORMS.items(), *FORMS.items()]:
            r = c.request(connection, "?" + form)
            assert (form, r.status, r.body) == (form, 200, body)


def test_callable_objects(server: Site, case) -> None:
    """PEP 3333's own examples: a class whose instances are the iterable, called like a function."""

    class AppClass:
        def __init__(self, environ, start_response):
            self.environ = environ
            self.start = start_response

        def __iter__(self):
            self.start("200 OK", [("Content-Type", "text/plain")])
            yield b"Hello "
            yield b"class"

    assert case(AppClass).get().body == b"Hello class"


def test_bytes_subclass(server: Site, case) -> None:
    """Items of a subclass of bytes count as bytes."""

    def app(environ, start_response):
        class Sub(bytes):
            def __len__(self):
                return 1

        start_response("200 OK", [("Content-Type", "text/plain")])
        return [Sub(b"sub"), Sub(b"class")]

    assert case(app).get().body == b"subclass"


NOT_BYTES = {"str": "text", "int": 5, "none": None, "list": [b"x"], "bytearray": "bytearray"}


@pytest.mark.parametrize("kind", list(NOT_BYTES))
@pytest.mark.parametrize("form", ["list", "two", "generator"])
def test_items_that_are_no_bytes(server: Site, case, kind: str, form: str) -> None:
    """TypeError in the log, 500 to the client."""

    def app(environ, start_response):
        item = bytearray(b"x") if kind == "bytearray" else NOT_BYTES[kind]
        start_response("200 OK", [("Content-Type", "text/plain")])
        made = [item] if form == "list" else [b"", item]
        return iter(made) if form == "generator" else made

    name = {"none": "NoneType"}.get(kind, kind)
    server.expect_log(f"TypeError: response iterable must yield bytes, not {name}")
    server.allow_log(server.TRACEBACK)
    assert case(app).get().status == 500


@pytest.mark.parametrize("what", ["None", "5", "object()"])
def test_returns_no_iterable(server: Site, case, what: str) -> None:
    """The same for what cannot be iterated."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return eval(what)

    server.expect_log("TypeError: application returned .*, which cannot be iterated")
    server.allow_log(server.TRACEBACK)
    assert case(app).get().status == 500


class Closing:
    """For cases: an iterable that notes when it is closed. `fail`: where it raises."""

    def __init__(self, parts, fail="", error=None):
        self.parts, self.fail, self.error = parts, fail, error

    def __iter__(self):
        if self.fail == "iter":
            raise self.error
        for part in self.parts:
            note("part")
            yield part
        if self.fail == "end":
            raise self.error

    def close(self):
        note("close")
        if self.fail == "close":
            raise self.error


@pytest.mark.parametrize("parts", [[], [b""], [b"a"], [b"a", b"b"]])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_close_once_and_after_the_body(server: Site, rightful, parts: list[bytes], method: str) -> None:
    """close() is called once, when the body is over; the client does not wait for it."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return Closing(parts)

    c = rightful(app)
    assert c.get(method=method).body == (b"" if method == "HEAD" else b"".join(parts))
    c.wait_notes(*["part"] * len(parts), "close")


def test_answer_does_not_wait_for_close(server: Site, case) -> None:
    """The client has the whole answer while close() still runs."""

    def app(environ, start_response):
        class Slow:
            def __iter__(self):
                yield b"whole"

            def close(self):
                import os
                import time

                note("closing")
                gate = os.path.join(
                    os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "scratch", "gate-close"
                )
                end = time.monotonic() + 20
                while not os.path.exists(gate):
                    assert time.monotonic() < end, "the client waits for close()"
                    time.sleep(0.01)
                note("closed")

        start_response("200 OK", [("Content-Type", "text/plain")])
        return Slow()

    gate = server.scratch / "gate-close"
    gate.unlink(missing_ok=True)
    c = case(app)
    r = c.get(timeout=10)
    assert r.complete and r.body == b"whole"
    c.wait_notes("closing")
    gate.touch()
    c.wait_notes("closing", "closed")


ERRORS = [
    "RuntimeError('deliberate')",
    "SystemExit(3)",
    "KeyboardInterrupt()",
    "GeneratorExit()",
    "StopIteration('deliberate')",
    "MemoryError('deliberate')",
    "type('Own', (BaseException,), {})('deliberate')",
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["call", "call-after-start", "iter", "end", "close"])
def test_exceptions(server: Site, case, error: str, where: str) -> None:
    """Any exception, anywhere: logged; 500 or a cut answer; close() once; the process lives and serves the next."""

    def app(environ, start_response):
        raised = eval(error)
        if where == "call":
            raise raised
        start_response("200 OK", [("Content-Type", "text/plain")])
        if where == "call-after-start":
            raise raised
        return Closing([b"part" * 5000], where, raised)

    def pid(environ, start_response):
        import os

        return text(start_response, str(os.getpid()))

    server.expect_log(r"MWR0431: SystemExit raised in WSGI script" if "SystemExit" in error else "MWR0430: exception ")
    server.allow_log(server.TRACEBACK)
    before = case(pid, "/single").get().text
    c = case(app, "/single")
    r = c.get()
    if where == "close":
        assert (r.status, r.body, r.complete) == (200, b"part" * 5000, True)
    elif where == "end":
        assert r.truncated
    else:
        assert r.status == 500 and "Internal Server Error" in r.text
    notes = {"iter": ["close"], "end": ["part", "close"], "close": ["part", "close"]}.get(where, [])
    c.wait_notes(*notes)
    assert case(pid, "/single").get().text == before


def test_close_that_is_no_method(server: Site, case) -> None:
    """An attribute close that cannot be called is logged; the answer is whole."""

    def app(environ, start_response):
        class Odd:
            close = None

            def __iter__(self):
                return iter([b"body"])

        start_response("200 OK", [("Content-Type", "text/plain")])
        return Odd()

    server.expect_log("TypeError: 'NoneType' object is not callable")
    server.allow_log(server.TRACEBACK)
    assert case(app).get().body == b"body"


def test_close_when_the_client_leaves(server: Site, case) -> None:
    """An iterable whose client has gone is closed; generators see GeneratorExit."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            note("begun")
            while True:
                yield b"x" * 100_000
        except GeneratorExit:
            note("GeneratorExit")
            raise

    server.allow_log(server.CLIENT_FAULTS)
    c = case(app)
    with server.connect() as connection:
        connection.send(http.build("GET", c.path))
        connection.head()
    c.wait_notes("begun", "GeneratorExit")


def test_generator_is_closed_at_once(server: Site, case) -> None:
    """A generator that a HEAD request or an early end leaves unfinished has run its finally before the next request."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            yield b"body"
        finally:
            note("finally")

    c = case(app)
    with server.connect() as connection:
        for _ in range(3):
            assert c.request(connection).body == b"body"
    c.wait_notes("finally", "finally", "finally")


def test_each_block_is_sent_before_the_next_is_asked_for(server: Site, case) -> None:
    """PEP 3333: a block may wait in the server, but not for the application: it reaches the client while the
    application is at the next."""

    def app(environ, start_response):
        import os
        import time

        start_response("200 OK", [("Content-Type", "text/plain")])
        scratch = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "scratch")
        for i in range(3):
            yield b"block %d" % i
            end = time.monotonic() + 20
            while not os.path.exists(os.path.join(scratch, f"gate-block-{i}")):
                assert time.monotonic() < end, f"block {i} has not reached the client"
                time.sleep(0.005)

    gates = [server.scratch / f"gate-block-{i}" for i in range(3)]
    for gate in gates:
        gate.unlink(missing_ok=True)
    c = case(app)
    with server.connect() as connection:
        connection.send(http.build("GET", c.path))
        assert connection.head().status == 200
        for i, gate in enumerate(gates):
            assert connection.read_chunk() == b"block %d" % i
            gate.touch()
        assert connection.read_chunk() == b""


def test_environ_may_be_changed(server: Site, rightful) -> None:
    """PEP 3333: environ is a dict that the application may change; nothing of it shows in the next request."""

    def app(environ, start_response):
        seen = json.dumps([environ.get("HTTP_X_OWN"), environ.get("own.key"), environ["wsgi.url_scheme"]])
        environ["HTTP_X_OWN"] = "changed"
        environ["own.key"] = "kept"
        environ["wsgi.url_scheme"] = "changed"
        return text(start_response, seen)

    c = rightful(app)
    with server.connect() as connection:
        for _ in range(40):
            assert c.request(connection).text == '[null, null, "http"]'
