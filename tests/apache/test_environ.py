"""W2: what is Apache's own in environ: its directives about names, paths and credentials, and the exact set of keys."""

from __future__ import annotations

import base64
import json
import os

import pytest

from harness import product
from harness.apache import Apache

pytestmark = [pytest.mark.ours]

BASIC = "Basic " + base64.b64encode(b"someone:secret").decode()

#: one virtual host for each setting that the main server can have but once
HOSTS = {
    "plain": "",
    "unmerged": "MergeSlashes Off",
    "decoded": "AllowEncodedSlashes On",
    "undecoded": "AllowEncodedSlashes NoDecode",
    "canonical": "UseCanonicalName On\nServerName canonical.example:8081\nServerAlias canonical",
    "listening": "UseCanonicalPhysicalPort On",
}

CONFIG = """
WSGIDaemonProcess g processes=1 threads=4
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
ErrorLogFormat "[%{cu}t] [%-m:%l] [pid %P] [%L] [%{c}L] %M"
<Location /environ-json/cgi>
CGIPassAuth On
</Location>
<Location /environ-json/both>
CGIPassAuth On
WSGIPassAuthorization On
</Location>
<Location /environ-json/own>
WSGIPassAuthorization On
</Location>
<Location /environ-json/https>
SetEnv HTTPS 1
</Location>
""" + "".join(
    f"<VirtualHost *:{{port}}>\nServerName {name}\nServerAlias {name}.example\n{text}\n"
    "WSGIScriptAlias /mounted {apps}/conform.wsgi\nWSGIScriptAlias / {apps}/conform.wsgi\n</VirtualHost>\n"
    for name, text in HOSTS.items()
)


@pytest.fixture(scope="module")
def server(shared) -> Apache:
    return shared(CONFIG)


def values(server: Apache, target: str = "/environ-json", host: str = "plain", **kw: object) -> dict[str, object]:
    r = server.get(target, host=host, **kw)
    assert r.status == 200, f"{r.status} {r.text}"
    return {k: v for k, (_, v) in json.loads(r.body).items() if k != "*exact-dict"}


def test_exact_keys(server: Apache) -> None:
    """Every key that a plain GET has, and no other: nothing of the server's process or of ours slips in."""
    assert values(server).keys() == {
        # PEP 3333, and the CGI variables of RFC 3875 that it takes over
        *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "SERVER_NAME", "SERVER_PORT"),
        *("SERVER_PROTOCOL", "REMOTE_ADDR", "SERVER_SOFTWARE", "HTTP_HOST", "HTTP_CONNECTION"),
        *("wsgi.version", "wsgi.url_scheme", "wsgi.input", "wsgi.errors", "wsgi.multithread", "wsgi.multiprocess"),
        *("wsgi.run_once", "wsgi.file_wrapper", "wsgi.input_terminated"),
        # httpd's
        *("REQUEST_URI", "RAW_URI", "REMOTE_PORT", "SERVER_ADDR", "SERVER_ADMIN", "REQUEST_SCHEME"),
        *("DOCUMENT_ROOT", "SCRIPT_FILENAME", "CONTEXT_PREFIX", "CONTEXT_DOCUMENT_ROOT"),
        # mod_wsgi's
        *("mod_wsgi.version", "mod_wsgi.process_group", "mod_wsgi.application_group", "mod_wsgi.callable_object"),
        *("mod_wsgi.request_handler", "mod_wsgi.handler_script", "mod_wsgi.script_name", "mod_wsgi.path_info"),
        *("mod_wsgi.listener_host", "mod_wsgi.listener_port", "mod_wsgi.request_id", "mod_wsgi.thread_id"),
        *("mod_wsgi.server_pid", "mod_wsgi.request_start", "mod_wsgi.queue_start", "mod_wsgi.daemon_start"),
        *("mod_wsgi.application_start", "apache.version"),
    }


@pytest.mark.parametrize(
    ("place", "passed"),
    [
        ("none", set()),
        ("own", {"HTTP_AUTHORIZATION"}),
        ("cgi", {"HTTP_AUTHORIZATION", "HTTP_PROXY_AUTHORIZATION"}),
        ("both", {"HTTP_AUTHORIZATION", "HTTP_PROXY_AUTHORIZATION"}),
    ],
)
def test_authorization(server: Apache, place: str, passed: set[str]) -> None:
    """WSGIPassAuthorization passes Authorization, CGIPassAuth also Proxy-Authorization; nothing passes by itself."""
    fields = [("Authorization", BASIC), ("Proxy-Authorization", BASIC)]
    v = values(server, f"/environ-json/{place}", headers=fields)
    assert {k for k in v if "AUTHORIZATION" in k} == passed
    assert all(v[k] == BASIC for k in passed)


@pytest.mark.parametrize(
    ("host", "path_info"), [("decoded", "/environ-json/a/b c"), ("undecoded", "/environ-json/a%2Fb c")]
)
def test_encoded_slashes(server: Apache, host: str, path_info: str) -> None:
    """AllowEncodedSlashes decides; REQUEST_URI keeps what was sent."""
    v = values(server, "/mounted/environ-json/a%2Fb%20c", host)
    assert (v["SCRIPT_NAME"], v["PATH_INFO"]) == ("/mounted", path_info)
    assert v["REQUEST_URI"] == v["RAW_URI"] == "/mounted/environ-json/a%2Fb%20c"


def test_encoded_slashes_refused(server: Apache) -> None:
    """The default: 404 before the application."""
    server.allow_log("AH00026|AH\\d{5}.*encoded slash")
    assert "no such application" not in server.get("/environ-json/a%2Fb", host="plain").text
    assert server.get("/environ-json/a%2Fb", host="plain").status == 404


@pytest.mark.parametrize("host", ["plain", "unmerged"])
@pytest.mark.parametrize(
    ("target", "script_name", "path_info"),
    [
        ("/mounted/environ-json//x///y/", "/mounted", "/environ-json/x/y/"),
        ("//mounted///environ-json", "/mounted", "/environ-json"),
        ("//environ-json//", "", "/environ-json/"),
    ],
)
def test_slashes(server: Apache, host: str, target: str, script_name: str, path_info: str) -> None:
    """Runs of slashes are one in SCRIPT_NAME and PATH_INFO, whatever MergeSlashes says, and are left in REQUEST_URI."""
    v = values(server, target, host)
    assert (v["SCRIPT_NAME"], v["PATH_INFO"], v["REQUEST_URI"]) == (script_name, path_info, target)
    assert (v["mod_wsgi.script_name"], v["mod_wsgi.path_info"]) == (script_name, path_info)


def test_use_canonical_name(server: Apache) -> None:
    """SERVER_NAME and SERVER_PORT are the client's, or the configuration's with UseCanonicalName On."""
    v = values(server, host="plain.example:4711")
    assert (v["SERVER_NAME"], v["SERVER_PORT"], v["HTTP_HOST"]) == ("plain.example", "4711", "plain.example:4711")
    v = values(server, host="canonical:4711")
    assert (v["SERVER_NAME"], v["SERVER_PORT"], v["HTTP_HOST"]) == ("canonical.example", "8081", "canonical:4711")


def test_https_1(server: Apache) -> None:
    """HTTPS=1 counts as on, as in mod_wsgi."""
    v = values(server, "/environ-json/https")
    assert v["wsgi.url_scheme"] == "https" and "HTTPS" not in v


def test_ids_of_the_log(server: Apache) -> None:
    """mod_wsgi.request_id is the id in the error log (%L): there always, another one for each request;
    mod_wsgi.connection_id is the connection's, once anything has been logged about it."""
    with server.connect() as c:
        found = []
        for _ in range(3):
            assert c.request(target="/errors?ids", host="plain").status == 200
            r = c.request(target="/environ-json", host="plain")
            v = {k: value for k, (_, value) in json.loads(r.body).items()}
            found.append((v["mod_wsgi.request_id"], v["mod_wsgi.connection_id"]))
    requests, connections = zip(*found, strict=True)
    assert len(set(requests)) == 3 and len(set(connections)) == 1
    server.allow_log("ids$")
    logged = server.log.wait(
        r"\[pid \d+\] \[[^]]+\] \[" + connections[0].replace("+", r"\+") + r"\] errors-ids", count=3
    )
    assert not any(f"[{r}]" in line for r in requests for line in logged)


@pytest.mark.parametrize("handler", ["wsgi-script", "application/x-httpd-wsgi"])
def test_request_handler(apache, handler: str) -> None:
    """mod_wsgi.request_handler is the handler's name in Apache's configuration."""
    server = apache(
        "DocumentRoot {prefix}/apps\nWSGIDaemonProcess g\nWSGIProcessGroup g\nWSGIApplicationGroup %{GLOBAL}\n"
        f"<Directory {{prefix}}/apps>\nOptions ExecCGI\nAddHandler {handler} .wsgi\n</Directory>"
    )
    v = values(server, "/conform.wsgi/environ-json")
    assert v["mod_wsgi.request_handler"] == handler
    assert (v["SCRIPT_NAME"], v["PATH_INFO"]) == ("/conform.wsgi", "/environ-json")
    assert v["wsgi.multiprocess"] is False, "processes= is not given"


@pytest.mark.parametrize("name", [b"sch\xc3\xb6n", b"sch\xf6n"], ids=["utf-8", "latin-1"])
def test_paths_in_the_file_systems_encoding(apache, name: bytes) -> None:
    """DOCUMENT_ROOT and SCRIPT_FILENAME can be opened by the application as they are, whatever bytes they consist of;
    every other value is Latin-1."""
    server = apache("", start=False)
    root = os.path.join(os.fsencode(server.prefix), name)
    os.mkdir(root)
    with open(os.path.join(root, b"app.wsgi"), "wb") as f:
        f.write(
            b"import json, os\n"
            b"def application(environ, start_response):\n"
            b"    keys = ('DOCUMENT_ROOT', 'SCRIPT_FILENAME')\n"
            b"    found = [os.path.exists(environ[k]) for k in keys] + [environ['CONTEXT_DOCUMENT_ROOT']]\n"
            b"    body = json.dumps(found).encode()\n"
            b"    start_response('200 OK', [('Content-Type', 'text/plain'), ('Content-Length', str(len(body)))])\n"
            b"    return [body]\n"
        )
    config = (
        "WSGIDaemonProcess g locale=C.UTF-8\nWSGIProcessGroup g\nWSGIApplicationGroup %{GLOBAL}\n"
        "DocumentRoot {prefix}/NAME\n<Directory />\nOptions ExecCGI\nAddHandler wsgi-script .wsgi\n</Directory>"
    )
    server.write_config(config)
    path = server.prefix / "httpd.conf"
    path.write_bytes(path.read_bytes().replace(b"NAME", name))
    server.write_config = lambda config=None: path  # type: ignore[method-assign]
    server.start()
    expected = os.path.join(os.fsencode(server.prefix), name).decode("latin-1")
    assert json.loads(server.get("/app.wsgi").body) == [True, True, expected]


def test_server_pid_is_apaches(server: Apache) -> None:
    """mod_wsgi.server_pid is the process of httpd that serves the request, as text."""
    assert int(values(server)["mod_wsgi.server_pid"]) in {p.pid for p in server.server_processes()}


def test_apache_version(server: Apache) -> None:
    """apache.version is the tuple that `apachectl -v` shows."""
    import subprocess

    out = subprocess.run([product.httpd(), "-v"], capture_output=True, text=True, check=True).stdout
    number = out.split("Apache/")[1].split()[0]
    assert values(server)["apache.version"] == [int(n) for n in number.split(".")]
