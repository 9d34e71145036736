"""What the application finds in environ."""

from __future__ import annotations

import base64
import json
import os

import pytest

from harness import http, product
from harness.case import text
from harness.site import Site

BASIC = "Basic " + base64.b64encode(b"someone:secret").decode()


def environ(server: Site, target: str = "/environ-json", **kw) -> dict[str, tuple[str, object]]:
    r = server.get(target, **kw)
    assert r.status == 200, r.text
    return {k: (t, v) for k, (t, v) in json.loads(r.body).items()}


def values(server: Site, target: str = "/environ-json", **kw) -> dict[str, object]:
    return {k: v for k, (_, v) in environ(server, target, **kw).items()}


def test_cgi_keys(server: Site) -> None:
    """R10, PEP 3333: the CGI variables, as native strings."""
    e = environ(server, "/environ-json/some/path?a=1&b=%20", host="example.org:4711")
    for key, (kind, _) in e.items():
        if key.isupper():
            assert kind == "str", key
    v = {k: x for k, (_, x) in e.items()}
    assert v["REQUEST_METHOD"] == "GET"
    assert v["SCRIPT_NAME"] == ""
    assert v["PATH_INFO"] == "/environ-json/some/path"
    assert v["QUERY_STRING"] == "a=1&b=%20"
    assert v["REQUEST_URI"] == "/environ-json/some/path?a=1&b=%20"
    assert v["SERVER_NAME"] == "example.org"
    assert v["SERVER_PORT"] == ("4711" if server.PORT_FROM_HOST else str(server.port))
    assert v["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert v["SERVER_ADDR"] == "127.0.0.1"
    assert v["REMOTE_ADDR"] == "127.0.0.1"
    assert str(v["REMOTE_PORT"]).isdigit()
    assert v["REQUEST_SCHEME"] == "http"
    assert v["HTTP_HOST"] == "example.org:4711"
    assert str(v["SERVER_SOFTWARE"]).startswith(server.SOFTWARE)
    assert v["DOCUMENT_ROOT"] == f"{server.prefix}/htdocs"
    assert v["SCRIPT_FILENAME"] == f"{server.apps}/conform.wsgi"
    assert v["MWR_SETENV"] == "from-setenv"
    assert "CONTENT_TYPE" not in v or v["CONTENT_TYPE"] == ""
    assert "*exact-dict" in v and v["*exact-dict"] is True


def test_absent_keys(server: Site) -> None:
    """R10: what the reference leaves out since 6.0 stays out."""
    v = values(server)
    absent = {
        "PATH_TRANSLATED",
        "GATEWAY_INTERFACE",
        "SERVER_SIGNATURE",
        "REMOTE_HOST",
        "REMOTE_IDENT",
        "PATH",
        "HTTPS",
    }
    assert not absent & v.keys()
    assert not [k for k in v if k.startswith("mod_wsgi.x-")]
    assert "LD_LIBRARY_PATH" not in v and "HTTP_CONTENT_TYPE" not in v and "HTTP_CONTENT_LENGTH" not in v
    assert "REMOTE_USER" not in v and "AUTH_TYPE" not in v


def test_query_string_is_always_there(server: Site) -> None:
    """R10: QUERY_STRING and PATH_INFO are '' when there is none."""
    v = values(server)
    assert v["QUERY_STRING"] == "" and v["REQUEST_URI"] == "/environ-json"


def test_wsgi_keys(server: Site) -> None:
    """R10, PEP 3333: the wsgi.* keys and their types."""
    e = environ(server)
    assert e["wsgi.version"] == ("tuple", [1, 0])
    assert e["wsgi.url_scheme"] == ("str", "http")
    assert e["wsgi.multithread"] == ("bool", True)
    assert e["wsgi.multiprocess"] == ("bool", True)
    assert e["wsgi.run_once"] == ("bool", False)
    assert e["wsgi.input_terminated"] == ("bool", True)
    for key in ("wsgi.input", "wsgi.errors", "wsgi.file_wrapper"):
        assert key in e, key


def test_mod_wsgi_keys(server: Site) -> None:
    """R10: the mod_wsgi.* keys that the reference documents, with its types."""
    e = environ(server, "/mounted/below/environ-json/x")
    v = {k: x for k, (_, x) in e.items()}
    assert v["mod_wsgi.process_group"] == "main"
    assert v["mod_wsgi.application_group"] == ""
    assert v["mod_wsgi.callable_object"] == "application"
    assert v["mod_wsgi.request_handler"] == "wsgi-script"
    assert v["mod_wsgi.handler_script"] == ""
    assert v["mod_wsgi.script_name"] == "/mounted/below"
    assert v["mod_wsgi.path_info"] == "/environ-json/x"
    assert v["mod_wsgi.listener_port"] == str(server.port)
    assert v["mod_wsgi.listener_host"] in ("127.0.0.1", "")
    assert e["mod_wsgi.version"][0] == "tuple"
    assert e["mod_wsgi.thread_id"][0] == "int" and e["mod_wsgi.server_pid"][0] == "str"
    for key in ("request_start", "queue_start", "daemon_start", "application_start"):
        kind, value = e[f"mod_wsgi.{key}"]
        assert kind == "float" and value > 1e9, (key, kind, value)
    assert v["mod_wsgi.request_start"] <= v["mod_wsgi.application_start"]
    assert not product.is_ours() or v["mod_wsgi.request_id"]


@pytest.mark.parametrize(("mount", "many"), [("/case", True), ("/single", False)])
def test_threads_and_processes(server: Site, case, mount: str, many: bool) -> None:
    """W2, PEP 3333: multithread where the process has several threads, multiprocess where the group may have several
    processes; never run_once."""

    def app(environ, start_response):
        keys = ("wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once")
        return text(start_response, json.dumps([environ[k] for k in keys]))

    assert json.loads(case(app, mount).get().body) == [many, many, False]


def test_url_scheme_from_the_variable_https(server: Site) -> None:
    """W2: the server's variable HTTPS decides wsgi.url_scheme and is itself not passed on."""
    for place, scheme in (("https", "https"), ("https-off", "http")):
        v = values(server, f"/environ-json/{place}")
        assert v["wsgi.url_scheme"] == scheme and "HTTPS" not in v


@pytest.mark.ours
def test_variables_of_the_server(server: Site) -> None:
    """W2: what the server's configuration sets arrives, in Latin-1; what describes the request cannot be replaced from
    there (where that is not what the setting is for: nginx), and the interface's own names cannot be taken."""
    v = values(server, "/environ-json/set")
    assert v["MWR_LATIN"] == "caf\xc3\xa9" and v["MWR_EMPTY"] == "" and v["MWR_SETENV"] == "from-setenv"
    assert v["app.setting"] == "of the application" and v["HTTP_X_SET"] == "from the server"
    assert v["REMOTE_USER"] == "from the server", "nothing else says who it is"
    plain = values(server)
    own = ("REQUEST_METHOD", "SCRIPT_NAME", "SERVER_NAME", "HTTP_HOST", "wsgi.url_scheme", "mod_wsgi.process_group")
    if server.SETTINGS_WIN:
        own = ("wsgi.url_scheme", "mod_wsgi.process_group")
    assert {k: v[k] for k in own} == {k: plain[k] for k in own}
    assert v["wsgi.errors"] is None, "an object, not the text"
    sent = values(server, "/environ-json/set", headers=[("X-Set", "1")])["HTTP_X_SET"]
    assert "PATH" not in v and sent == ("from the server" if server.SETTINGS_WIN else "1")


def test_no_key_but_text(server: Site) -> None:
    """PEP 3333: environ is an exact dict of native strings, whose values under CGI names are native strings with code
    points up to 255."""

    def high(value: object) -> bool:
        return isinstance(value, str) and any(ord(c) > 255 for c in value)

    fields = [("X-Latin", "\xff\x80\xe9"), ("User-Agent", "\u00fc")]
    e = environ(server, "/environ-json/%E2%82%AC?%E2%82%AC=\xe2\x82\xac", headers=fields)
    assert e["*exact-dict"][1] is True
    for key, (kind, value) in e.items():
        assert kind == "str" or "." in key or key == "*exact-dict", key
        assert not high(value), key
    assert e["HTTP_X_LATIN"][1] == "\xff\x80\xe9"
    assert e["PATH_INFO"][1].encode("latin-1").decode() == "/environ-json/\u20ac"
    assert e["REQUEST_URI"][1] == "/environ-json/%E2%82%AC?%E2%82%AC=\xe2\x82\xac"


@pytest.mark.parametrize("name", ["Content-Length", "Content-Type", "Transfer-Encoding", "Expect", "Proxy"])
def test_fields_without_a_key(server: Site, name: str) -> None:
    """W2: fields that have keys of their own, or are the server's affair, are not there as HTTP_ keys."""
    value = {"Content-Length": "3", "Transfer-Encoding": "chunked", "Expect": "100-continue"}.get(name, "x")
    body = b"3\r\nabc\r\n0\r\n\r\n" if name == "Transfer-Encoding" else b"abc"
    fields = [(name, value)]
    v = values(server, method="POST", headers=fields, body=body)
    assert "HTTP_" + name.upper().replace("-", "_") not in v and v["CONTENT_LENGTH"] == "3"


def test_no_length_without_a_body(server: Site) -> None:
    """PEP 3333: CONTENT_LENGTH and CONTENT_TYPE may be absent; where there is no body they are, or empty."""
    v = values(server)
    assert v.get("CONTENT_LENGTH", "") == "" and v.get("CONTENT_TYPE", "") == ""
    assert values(server, method="POST", headers=[("Content-Length", "0")])["CONTENT_LENGTH"] == "0"


@pytest.mark.parametrize(
    ("field", "key", "value"),
    [
        (("Accept", "text/html"), "HTTP_ACCEPT", "text/html"),
        (("X-Custom-Field", "v a l"), "HTTP_X_CUSTOM_FIELD", "v a l"),
        (("x-lower", "l"), "HTTP_X_LOWER", "l"),
        (("X-Digits-123", "d"), "HTTP_X_DIGITS_123", "d"),
        (("X-Empty", ""), "HTTP_X_EMPTY", ""),
        (("X-Latin", "caf\xe9"), "HTTP_X_LATIN", "caf\xe9"),
        (("Cookie", "a=b; c=d"), "HTTP_COOKIE", "a=b; c=d"),
    ],
)
def test_header(server: Site, field: tuple[str, str], key: str, value: str) -> None:
    """R10: request header fields arrive as HTTP_*, values in Latin-1."""
    assert environ(server, headers=[field])[key] == ("str", value)


@pytest.mark.parametrize(
    "field",
    [("X_Under", "1"), ("Proxy", "http://evil"), ("X.Dot", "1"), ("X!Bang", "1"), ("X-Under_Score", "1")],
)
def test_header_is_dropped(server: Site, field: tuple[str, str]) -> None:
    """R10: names outside [A-Za-z0-9-] and Proxy never reach the application."""
    v = values(server, headers=[field, ("X-Good", "here")])
    assert v["HTTP_X_GOOD"] == "here"
    assert not [k for k in v if "UNDER" in k or "PROXY" in k or "DOT" in k or "BANG" in k]


def test_header_underscore_cannot_replace_dash(server: Site) -> None:
    """R10: a client cannot overwrite X-Real by X_Real."""
    assert values(server, headers=[("X-Real", "true"), ("X_Real", "false")])["HTTP_X_REAL"] == "true"


def test_header_duplicates(server: Site) -> None:
    """R10: repeated fields are joined in order."""
    assert values(server, headers=[("X-Dup", "one"), ("X-Dup", "two")])["HTTP_X_DUP"] == "one, two"
    assert values(server, headers=[("Cookie", "a=1"), ("Cookie", "b=2")])["HTTP_COOKIE"] in ("a=1, b=2", "a=1; b=2")


def test_content_type_and_length(server: Site) -> None:
    """R10: the two bare keys, exactly as sent."""
    v = values(server, method="POST", headers=[("Content-Type", "Text/Plain; charset=x")], body=b"abc")
    assert v["CONTENT_TYPE"] == "Text/Plain; charset=x" and v["CONTENT_LENGTH"] == "3"
    assert "HTTP_CONTENT_TYPE" not in v and "HTTP_CONTENT_LENGTH" not in v


def test_authorization_is_withheld(server: Site) -> None:
    """R10: Authorization does not reach the application unless WSGIPassAuthorization is On."""
    assert "HTTP_AUTHORIZATION" not in values(server, headers=[("Authorization", BASIC)])
    assert "HTTP_PROXY_AUTHORIZATION" not in values(server, headers=[("Proxy-Authorization", BASIC)])


def test_authorization_is_passed(server: Site) -> None:
    """R10: WSGIPassAuthorization On."""
    v = values(server, "/environ-json/auth-passed", headers=[("Authorization", BASIC)])
    assert v["HTTP_AUTHORIZATION"] == BASIC


def test_remote_user(server: Site) -> None:
    """R10: httpd's own authentication gives REMOTE_USER and AUTH_TYPE, without the password."""
    assert server.get("/environ-json/basic").status == 401
    v = values(server, "/environ-json/basic", headers=[("Authorization", BASIC)])
    assert v["REMOTE_USER"] == "someone" and v["AUTH_TYPE"] == "Basic" and "HTTP_AUTHORIZATION" not in v


@pytest.mark.parametrize(
    ("target", "script_name", "path_info"),
    [
        ("/environ-json", "", "/environ-json"),
        ("/environ-json/", "", "/environ-json/"),
        ("/mounted/below/environ-json", "/mounted/below", "/environ-json"),
        ("/mounted/below/environ-json/a%20b", "/mounted/below", "/environ-json/a b"),
        ("/environ-json/caf%C3%A9", "", "/environ-json/caf\xc3\xa9"),
        ("/environ-json/caf%E9", "", "/environ-json/caf\xe9"),
        ("/environ-json/a//b///c", "", "/environ-json/a/b/c"),
        ("/environ-json/%3Fq", "", "/environ-json/?q"),
        ("/environ-json/./x/../y", "", "/environ-json/y"),
        ("//mounted//below///environ-json", "/mounted/below", "/environ-json"),
        ("/mounted/below/environ-json//", "/mounted/below", "/environ-json/"),
    ],
)
def test_script_name_and_path_info(server: Site, target: str, script_name: str, path_info: str) -> None:
    """R10: the split at the mount, percent-decoded, Latin-1, duplicate slashes collapsed; REQUEST_URI untouched."""
    v = values(server, target)
    assert (v["SCRIPT_NAME"], v["PATH_INFO"]) == (script_name, path_info)
    assert v["REQUEST_URI"] == target


def test_mount_root_has_empty_path_info(server: Site) -> None:
    """R10: at the mount itself PATH_INFO is ''."""
    r = server.get("/mounted/below")
    assert r.status == 200 and r.text == "exact:", "PATH_INFO '' makes the dispatcher fall back"


def test_query_string_is_raw(server: Site) -> None:
    """R10: QUERY_STRING is not decoded."""
    assert values(server, "/environ-json?x=%26&y=a+b&%F0=1")["QUERY_STRING"] == "x=%26&y=a+b&%F0=1"


def test_many_and_long_headers(server: Site) -> None:
    """R14: as many and as long fields as httpd accepts arrive whole."""
    fields = [(f"X-Many-{i}", f"{i}:" + "v" * 7000) for i in range(60)]
    v = values(server, headers=fields)
    for i in range(60):
        assert v[f"HTTP_X_MANY_{i}"] == f"{i}:" + "v" * 7000


def test_long_target(server: Site) -> None:
    """R14: a request target near httpd's limit."""
    target = "/environ-json?" + "q" * 8000
    assert values(server, target)["QUERY_STRING"] == "q" * 8000


def test_methods(server: Site) -> None:
    """R10: any method reaches the application under its name."""
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "XYZZY"):
        body = b"x" if method in ("POST", "PUT", "PATCH") else None
        assert values(server, method=method, body=body)["REQUEST_METHOD"] == method


def test_http10(server: Site) -> None:
    """R10: HTTP/1.0 without Host."""
    v = values(server, version="1.0", host=None)
    assert v["SERVER_PROTOCOL"] == "HTTP/1.0" and v["SERVER_NAME"] == "localhost" and "HTTP_HOST" not in v


def test_environ_is_fresh(server: Site) -> None:
    """R17: nothing of one request's environ shows up in the next on the same connection."""
    with server.connect() as c:
        for i in range(20):
            r = c.request(target="/environ-json", headers=[(f"X-Only-{i}", str(i))])
            v = {k: x for k, (_, x) in json.loads(r.body).items()}
            assert [k for k in v if k.startswith("HTTP_X_ONLY")] == [f"HTTP_X_ONLY_{i}"]


def test_worker_is_not_root(server: Site) -> None:
    """R6: Python never runs as uid 0; without user= it is the server's user."""
    import pwd

    e = json.loads(server.get("/process").body)
    expected = pwd.getpwnam(product.server_user()[0]).pw_uid if os.geteuid() == 0 else os.geteuid()
    assert e["uid"] == expected and e["main"] is False


def test_expect_is_not_seen(server: Site) -> None:
    """Pitfall H20: the server answers Expect itself."""
    with http.Connection(server.port) as c:
        c.send(http.build("POST", "/environ-json", [("Expect", "100-continue"), ("Content-Length", "2")]) + b"ok")
        r = c.response()
        assert r.status == 200
        assert product.is_ours() is False or "HTTP_EXPECT" not in json.loads(r.body)
