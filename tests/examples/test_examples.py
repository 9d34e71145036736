"""R9, N5: each example through LoadModule and through express on each server, configured as its README says."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable

import pytest

from harness import http, product
from harness.apache import Apache
from harness.example import place
from harness.express import Express

pytestmark = pytest.mark.ours


@dataclasses.dataclass
class Example:
    """How an example is given to each of the two: a script with its callable, or what express takes."""

    script: str
    callable: str
    target: str
    options: tuple[str, ...] = ()


EXAMPLES = {
    "hello": Example("app.wsgi", "application", "app.wsgi"),
    "flask": Example("app.py", "app", "app:app"),
    "streaming": Example("app.wsgi", "application", "app.wsgi", ("--threads", "20")),
    "django": Example(
        "project/wsgi.py", "application", "project.wsgi:application", ("--url-alias", "/static", "data/static")
    ),
}


@dataclasses.dataclass
class Site:
    """Where an example answers."""

    port: int

    def get(self, target: str = "/", **kw) -> http.Response:
        return http.fetch(self.port, target, **kw)


def through_module(apache: Callable[..., Apache], name: str) -> Site:
    server = apache(start=False)
    example = EXAMPLES[name]
    where = place(name, server.apps / "examples")
    static = f"Alias /static {where}/data/static\n" if name == "django" else ""
    server.config = static + (
        f"WSGIDaemonProcess example python-home={product.venv()} home={where} threads=20 env=DJANGO_DATA={where}/data\n"
        f"WSGIScriptAlias / {where / example.script} process-group=example application-group=%{{GLOBAL}} "
        f"callable-object={example.callable}\n"
    )
    server.log.allow(r"\[wsgi:(warn|error)\].*(Not Found|Forbidden)")
    return Site(server.start().port)


def through_express(express_on: Callable[..., Express], server: str, name: str) -> Site:
    x = express_on(server)
    example = EXAMPLES[name]
    x.work = place(name, x.work)
    x.start(example.target, "--python", str(product.venv()), *example.options)
    return Site(x.port)


@pytest.fixture(params=["LoadModule", "express-apache", "express-nginx"])
def serve(request, apache, express_on) -> Callable[[str], Site]:
    """Serves an example by name in one of the ways there are."""
    if request.param == "LoadModule":
        return lambda name: through_module(apache, name)
    server = request.param.removeprefix("express-")
    if server == "nginx" and not product.has_nginx():
        pytest.skip("no nginx, or no module for it: see `make build`")
    return lambda name: through_express(express_on, server, name)


def test_hello(serve) -> None:
    """R9: examples/hello."""
    r = serve("hello").get("/")
    assert r.status == 200 and r.complete and b"ello" in r.body


def test_flask(serve) -> None:
    """R9: examples/flask: page, form, JSON, 404."""
    site = serve("flask")
    assert "Hello, world" in site.get("/").text
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    assert "Hello, J\xfcrgen" in site.get("/", method="POST", headers=form, body=b"name=J%C3%BCrgen").text
    fields = [("Content-Type", "application/json"), ("User-Agent", "mwr-test")]
    r = site.get("/api/echo", method="POST", headers=fields, body=b'{"a": [1, null]}')
    assert json.loads(r.body) == {"received": {"a": [1, None]}, "agent": "mwr-test"}
    assert site.get("/no/such/page").status == 404


def test_streaming(serve) -> None:
    """R9: examples/streaming: server-sent events arrive one by one, not all at the end."""
    site = serve("streaming")
    assert "EventSource" in site.get("/").text
    with http.Connection(site.port) as c:
        c.send(http.build(target="/events?count=3&interval=0.3", headers=[("Accept", "text/event-stream")]))
        head = c.head()
        assert head.status == 200 and head.header("Content-Type").startswith("text/event-stream")
        chunks = []
        while piece := c.read_chunk():
            chunks.append(piece)
        assert piece == b"", "ended properly"
    assert len(chunks) >= 3 and chunks[0].startswith(b"id: 1\ndata: event 1 of 3")
    assert b"".join(chunks).endswith(b"event: end\ndata: that was all\n\n")


class Browser:
    """Keeps cookies and fills in the CSRF token, as a browser does."""

    def __init__(self, site: Site):
        self.site, self.jar = site, dict[str, str]()

    def _fields(self) -> list[tuple[str, str]]:
        return [("Cookie", "; ".join(f"{k}={v}" for k, v in self.jar.items()))] if self.jar else []

    def _keep(self, r: http.Response) -> http.Response:
        for v in r.all("Set-Cookie"):
            key, _, value = v.split(";")[0].partition("=")
            self.jar[key] = value
        return r

    def get(self, target: str) -> http.Response:
        return self._keep(self.site.get(target, headers=self._fields()))

    def post(
        self, target: str, fields: dict[str, str], files: dict[str, tuple[str, bytes]] | None = None
    ) -> http.Response:
        page = self.get(target).text
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
        assert token, "the form has a CSRF token"
        edge = "mwr-boundary-5c2"
        body = b""
        for key, value in {**fields, "csrfmiddlewaretoken": token[1]}.items():
            body += f'--{edge}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, (name, data) in (files or {}).items():
            body += f'--{edge}\r\nContent-Disposition: form-data; name="{key}"; filename="{name}"\r\n\r\n'.encode()
            body += data + b"\r\n"
        body += f"--{edge}--\r\n".encode()
        headers = [*self._fields(), ("Content-Type", f"multipart/form-data; boundary={edge}")]
        return self._keep(self.site.get(target, method="POST", headers=headers, body=body))


def test_django(serve) -> None:
    """R9: examples/django: upload form with CSRF token, SQLite, attachment, admin with login, static files."""
    browser = Browser(serve("django"))
    assert browser.get("/").status == 200
    data = os.urandom(300000)
    form = browser.get("/").text
    names = re.findall(r'<(?:input|textarea)[^>]* name="(\w+)"', form)
    texts = {n: f"note about {n}" for n in names if n not in ("csrfmiddlewaretoken", "attachment")}
    assert texts and "attachment" in names
    r = browser.post("/", texts, {"attachment": ("file.bin", data)})
    assert r.status == 302, r.text[:1000]
    page = browser.get("/").text
    assert next(iter(texts.values())) in page
    link = re.search(r'href="(/attachment/\d+/)"', page)
    assert link
    r = browser.get(link[1])
    assert r.status == 200 and r.complete and r.body == data
    css = re.search(r'href="(/static/[^"]+\.css)"', page)
    assert css
    r = browser.get(css[1])
    assert r.status == 200 and r.header("Content-Type").startswith("text/css")
    r = browser.post("/admin/login/?next=/admin/", {"username": "boss", "password": "wrong"})
    assert r.status == 200 and "correct" in r.text
    r = browser.post("/admin/login/?next=/admin/", {"username": "boss", "password": "only-for-tests"})
    assert r.status == 302 and r.header("Location") == "/admin/"
    assert "Site administration" in browser.get("/admin/").text
