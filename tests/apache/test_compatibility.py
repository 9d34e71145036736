"""W16: differences from mod_wsgi that no rule of HTTP or PEP 3333 asks for (docs/compatibility.md)."""

from __future__ import annotations

import json

import pytest

from harness.apache import Apache
from harness.case import deploy, note, text

pytestmark = [pytest.mark.ours]

CONFIG = """
WSGIDaemonProcess g processes=1 threads=4
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /case {apps}/cases.wsgi
RewriteEngine On
RewriteRule ^/rewritten/(.*)$ /case/$1 [PT]
ErrorDocument 404 default
<Location /case>
CGIVar REQUEST_URI current-uri
QualifyRedirectURL On
</Location>
AddOutputFilterByType DEFLATE text/plain
"""


@pytest.fixture(scope="module")
def server(shared) -> Apache:
    return shared(CONFIG, modules=["filter", "deflate"])


def test_repeated_response_headers(server: Apache) -> None:
    """Sent as often as they were given, in order."""

    def app(environ, start_response):
        return text(
            start_response, "x", headers=[("Link", "</a>"), ("X-Other", "1"), ("Link", "</b>"), ("link", "</c>")]
        )

    r = deploy(server, app).get()
    assert r.all("Link") == ["</a>", "</b>", "</c>"]


@pytest.mark.parametrize("value", ["Sat, 29 Oct 1994 19:43:31 GMT", "1994-10-29T19:43:31Z"])
def test_last_modified_is_left_alone(server: Apache, value: str) -> None:
    """Whatever its form."""

    def app(environ, start_response):
        return text(start_response, "x", headers=[("Last-Modified", value)])

    assert deploy(server, app).get().header("Last-Modified") == value


def test_head_is_head_behind_a_filter(server: Apache) -> None:
    """mod_wsgi would present GET, since the filter might change the headers."""

    def app(environ, start_response):
        note(environ["REQUEST_METHOD"])
        return text(start_response, "x" * 1000)

    c = deploy(server, app)
    fields = [("Accept-Encoding", "gzip")]
    assert c.get(headers=fields).header("Content-Encoding") == "gzip", "the filter is there"
    with server.connect() as connection:
        assert c.request(connection, method="HEAD", headers=fields).body == b""
        assert c.request(connection).body == b"x" * 1000
    assert c.notes() == ["GET", "HEAD", "GET"]


def test_listener_host(server: Apache) -> None:
    """The address that the client has connected to."""

    def app(environ, start_response):
        return text(start_response, json.dumps([environ["mod_wsgi.listener_host"], environ["mod_wsgi.listener_port"]]))

    assert json.loads(deploy(server, app).get().body) == ["127.0.0.1", str(server.port)]


def test_cgi_variables_have_one_meaning(server: Apache) -> None:
    """CGIVar and QualifyRedirectURL change nothing: REQUEST_URI is the target as sent, REDIRECT_URL a path."""

    def app(environ, start_response):
        if environ["QUERY_STRING"] == "first":
            start_response("200 OK", [("Location", environ["SCRIPT_NAME"] + environ["PATH_INFO"] + "?second")])
            return []
        return text(start_response, json.dumps([environ["REQUEST_URI"], environ.get("REDIRECT_URL")]))

    c = deploy(server, app)
    target = f"/rewritten/{c.name}/a%20b"
    assert json.loads(server.get(target).body) == [target, None]
    assert json.loads(c.get("?first").body)[1] == c.path


SIGNALS = """
import os, signal, threading
came = threading.Event()
signal.signal(signal.SIGURG, lambda *_: came.set())
def application(environ, start_response):
    os.kill(os.getpid(), signal.SIGURG)
    body = str(came.wait(10)).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def test_signal_handlers(apache) -> None:
    """DESIGN 7: scripts are loaded in the main thread, at the start of a worker and by a request: they may install
    handlers, which run."""
    server = apache(
        "WSGIDaemonProcess g\nWSGIScriptAlias /start {apps}/start.wsgi process-group=g application-group=%{GLOBAL}\n"
        "<Location /request>\nWSGIProcessGroup g\nWSGIApplicationGroup %{GLOBAL}\n</Location>\n"
        "WSGIScriptAlias /request {apps}/request.wsgi",
        start=False,
    )
    server.write("start.wsgi", SIGNALS)
    server.write("request.wsgi", SIGNALS)
    server.start()
    assert server.get("/start").text == "True"
    assert server.get("/request").text == "True"


@pytest.mark.parametrize(
    "line",
    [
        "WSGIAuthUserScript {apps}/conform.wsgi",
        "WSGIAuthGroupScript {apps}/conform.wsgi",
        "WSGIAccessScript {apps}/conform.wsgi",
        "WSGIDispatchScript {apps}/conform.wsgi",
    ],
)
def test_directives_for_python_in_apache(apache, line: str) -> None:
    """Unknown to Apache: better no start than a site without its access control."""
    server = apache(f"<Location />\n{line}\n</Location>", start=False)
    code, said = server.configtest()
    assert code != 0 and f"Invalid command '{line.split()[0]}'" in said
