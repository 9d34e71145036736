"""R9: each example through LoadModule and through express."""

from __future__ import annotations

import pathlib
import re
import shutil

import pytest

from harness import http, product
from harness.apache import Apache
from harness.express import Express

pytestmark = pytest.mark.ours
EXAMPLES = product.ROOT / "examples"


def place(name: str, where: pathlib.Path) -> pathlib.Path:
    """A copy of the example that the server's user may write to (Django keeps its database there)."""
    target = where / name
    shutil.copytree(EXAMPLES / name, target, ignore=shutil.ignore_patterns("__pycache__", "*.sqlite3", "*.pyc"))
    if product.IS_ROOT:
        user, group = product.server_user()
        for p in [target, *target.rglob("*")]:
            shutil.chown(p, user, group)
    scripts = list(target.glob("app.wsgi")) or list(target.glob("*.wsgi")) or list(target.rglob("wsgi.py"))
    assert scripts, f"examples/{name} has no WSGI script"
    return scripts[0]


class Site:
    """Where an example answers."""

    def __init__(self, port: int):
        self.port = port

    def get(self, target: str = "/", **kw) -> http.Response:
        return http.fetch(self.port, target, **kw)


@pytest.fixture(params=["LoadModule", "express"])
def serve(request, apache, express):
    """Serves an example by name in one of the two ways."""

    def by_module(name: str, *options: str) -> Site:
        server: Apache = apache(start=False)
        script = place(name, server.apps / "examples")
        home = f"python-home={product.venv()}"
        server.config = (
            f"WSGIDaemonProcess example {home} home={script.parent} python-path={script.parent}\n"
            f"WSGIScriptAlias / {script} process-group=example application-group=%{{GLOBAL}}\n"
        )
        static = script.parent / "static"
        if static.is_dir() and name == "django":
            server.config = f"Alias /static {static}\n" + server.config
        server.log.allow(r"\[wsgi:(warn|error)\].*(Not Found|Forbidden|Unauthorized)")
        return Site(server.start().port)

    def by_express(name: str, *options: str) -> Site:
        x: Express = express()
        script = place(name, x.work)
        x.start(str(script), "--python", str(product.venv()), "--working-directory", str(script.parent), *options)
        return Site(x.port)

    return by_module if request.param == "LoadModule" else by_express


def test_hello(serve) -> None:
    """R9: examples/hello."""
    site = serve("hello")
    r = site.get("/")
    assert r.status == 200 and r.complete and b"ello" in r.body


def test_flask(serve) -> None:
    """R9: examples/flask."""
    site = serve("flask")
    r = site.get("/")
    assert r.status == 200 and r.body
    assert site.get("/no/such/page").status == 404


def test_streaming(serve) -> None:
    """R9: examples/streaming: server-sent events arrive one by one."""
    site = serve("streaming")
    r = site.get("/")
    assert r.status == 200
    targets = ["/events", *re.findall(r"""EventSource\(["']([^"']+)""", r.text)]
    with http.Connection(site.port) as c:
        target = next((t for t in targets if t.startswith("/")), "/" + targets[-1])
        c.send(http.build(target=target, headers=[("Accept", "text/event-stream")]))
        head = c.head()
        assert head.status == 200 and head.header("Content-Type").startswith("text/event-stream")
        first, second = c.read_chunk(), c.read_chunk()
        assert first and second and (b"data:" in first or b"data:" in second)


def cookies(r: http.Response, old: dict[str, str]) -> dict[str, str]:
    new = dict(old)
    for v in r.all("Set-Cookie"):
        key, _, value = v.split(";")[0].partition("=")
        new[key] = value
    return new


def header(jar: dict[str, str]) -> tuple[str, str]:
    return ("Cookie", "; ".join(f"{k}={v}" for k, v in jar.items()))


def test_django(serve) -> None:
    """R9: examples/django: index, admin login page with its static files, CSRF-protected upload form, SQLite."""
    site = serve("django")
    r = site.get("/")
    assert r.status in (200, 302), r.text[:500]
    admin = site.get("/admin/login/")
    assert admin.status == 200 and "csrfmiddlewaretoken" in admin.text
    css = re.search(r'href="([^"]+\.css)"', admin.text)
    assert css
    r = site.get(css[1])
    assert r.status == 200 and r.header("Content-Type").startswith("text/css")
    jar = cookies(admin, {})
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', admin.text)[1]
    body = f"csrfmiddlewaretoken={token}&username=nobody&password=wrong&next=/admin/".encode()
    fields = [
        header(jar),
        ("Content-Type", "application/x-www-form-urlencoded"),
        ("Referer", f"http://localhost:{site.port}/admin/login/"),
    ]
    r = site.get("/admin/login/", method="POST", headers=fields, body=body)
    assert r.status == 200 and "correct" in r.text, "the database was asked"
