"""W12: `.htaccess` and `Options +ExecCGI`: what may stand where, and what it does to an application."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from harness import product
from harness.apache import Apache
from harness.server import running
from harness.wait import wait_until

CONFIG = """
WSGIDaemonProcess g threads=4
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /mapped {apps}/mapped/app.wsgi
<Directory {prefix}/htdocs/none>
AllowOverride None
</Directory>
<Directory {prefix}/htdocs/fileinfo>
AllowOverride FileInfo
</Directory>
<Directory {prefix}/htdocs/both>
AllowOverride FileInfo Options=ExecCGI
</Directory>
<Directory {prefix}/htdocs/exec>
AllowOverride FileInfo
Options +ExecCGI
</Directory>
<Directory {apps}/mapped>
AllowOverride FileInfo
</Directory>
"""
APP = """import json

def answer(which, environ, start_response):
    start_response("404 Own" if environ["QUERY_STRING"] == "404" else "200 OK", [("Content-Type", "text/plain")])
    keys = ("SCRIPT_NAME", "PATH_INFO", "HTTP_AUTHORIZATION", "FROM_HTACCESS")
    return [json.dumps({"which": which} | {k: environ.get(k) for k in keys}).encode()]

def application(environ, start_response):
    return answer("application", environ, start_response)

def other(environ, start_response):
    return answer("other", environ, start_response)
"""
AUTH = [("Authorization", "Basic YTpi")]


@pytest.fixture(scope="module", params=["event", "worker", "prefork"])
def server(request: pytest.FixtureRequest) -> Iterator[Apache]:
    apache = Apache(CONFIG, mpm=request.param)
    for name in ("none", "fileinfo", "both", "exec", "exec/deeper"):
        directory = apache.prefix / "htdocs" / name
        directory.mkdir()
        (directory / "app.wsgi").write_text(APP)
    apache.write("mapped/app.wsgi", APP)
    with running(apache) as live:
        yield live


def htaccess(server: Apache, where: str, text: str) -> None:
    base = server.apps if where == "mapped" else server.prefix / "htdocs"
    (base / where / ".htaccess").write_text(text)


HANDLER = "AddHandler wsgi-script .wsgi\n"


def test_not_heeded(server: Apache) -> None:
    """AllowOverride None: the file is a file."""
    htaccess(server, "none", "Options +ExecCGI\n" + HANDLER)
    assert server.get("/none/app.wsgi").text == APP


def test_handler_without_exec_cgi(server: Apache) -> None:
    """A handler alone is not enough: 403, and never the source."""
    htaccess(server, "fileinfo", HANDLER)
    server.expect_log("ExecCGI|MWR0220|WSGI0134")
    r = server.get("/fileinfo/app.wsgi")
    assert r.status == 403 and "import" not in r.text


@pytest.mark.parametrize(
    "line", ["Options +ExecCGI", "WSGIProcessGroup g", "WSGIScriptAlias /x /y", "WSGIDaemonProcess x"]
)
def test_not_allowed_here(server: Apache, line: str) -> None:
    """What FileInfo does not include is a 500 that names the directive."""
    htaccess(server, "fileinfo", HANDLER + line + "\n")
    server.expect_log(line.split()[0])
    r = server.get("/fileinfo/app.wsgi")
    assert r.status == 500 and "import" not in r.text


@pytest.mark.parametrize("handler", [HANDLER, "<Files app.wsgi>\nSetHandler wsgi-script\n</Files>\n"])
def test_options_and_handler(server: Apache, handler: str) -> None:
    """Options=ExecCGI and a handler, both from .htaccess."""
    htaccess(server, "both", "Options +ExecCGI\n" + handler)
    seen = json.loads(server.get("/both/app.wsgi/more", headers=AUTH).body)
    assert seen == {
        "which": "application", "SCRIPT_NAME": "/both/app.wsgi", "PATH_INFO": "/more", "HTTP_AUTHORIZATION": None,
        "FROM_HTACCESS": None,
    }  # fmt: skip


def test_directives_and_nesting(server: Apache) -> None:
    """Our directives of AllowOverride FileInfo; a deeper .htaccess changes some and inherits the rest."""
    htaccess(
        server, "exec", HANDLER + "WSGICallableObject other\nWSGIPassAuthorization On\nSetEnv FROM_HTACCESS outer\n"
    )
    htaccess(server, "exec/deeper", "WSGICallableObject application\nSetEnv FROM_HTACCESS inner\n")
    seen = json.loads(server.get("/exec/app.wsgi", headers=AUTH).body)
    assert (seen["which"], seen["HTTP_AUTHORIZATION"], seen["FROM_HTACCESS"]) == ("other", AUTH[0][1], "outer")
    seen = json.loads(server.get("/exec/deeper/app.wsgi", headers=AUTH).body)
    assert (seen["which"], seen["HTTP_AUTHORIZATION"], seen["FROM_HTACCESS"]) == ("application", AUTH[0][1], "inner")


def test_takes_effect_at_once(server: Apache) -> None:
    """A changed .htaccess holds for the next request, also for an aliased script; a bad value is a 500 and no crash."""
    for callable_object in ("other", "application"):
        htaccess(server, "mapped", f"WSGICallableObject {callable_object}\n")
        assert json.loads(server.get("/mapped/x").body)["which"] == callable_object
    htaccess(server, "mapped", "WSGIPassAuthorization perhaps\n")
    server.expect_log("WSGIPassAuthorization")
    assert server.get("/mapped/x").status == 500
    htaccess(server, "mapped", "ErrorDocument 404 words\nWSGIErrorOverride On\n")
    if product.is_ours():
        assert server.get("/mapped/x?404").text == "words"
    htaccess(server, "mapped", "WSGIErrorOverride Off\n")
    assert json.loads(server.get("/mapped/x?404").body)["which"] == "application"
    (server.apps / "mapped" / ".htaccess").unlink()
    wait_until(lambda: server.get("/mapped/x", headers=AUTH).status == 200)
