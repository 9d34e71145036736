"""Each directive in each of its contexts, with merging and selection as in the reference."""

from __future__ import annotations

import pytest

from harness import product
from harness.apache import Apache
from harness.inspect import look

CONFIG = """
WSGIDaemonProcess one threads=2
WSGIDaemonProcess two threads=3 processes=1
WSGIProcessGroup one
WSGIApplicationGroup %{GLOBAL}

WSGIScriptAlias /plain {apps}/inspect.wsgi
WSGIScriptAlias /options {apps}/inspect.wsgi process-group=two \\
    application-group=%{GLOBAL} callable-object=other pass-authorization=On
WSGIScriptAlias /first {apps}/dir/one.wsgi
WSGIScriptAlias /first/deeper {apps}/dir/two.wsgi
WSGIScriptAlias /dir/ {apps}/dir/
WSGIScriptAlias /location {apps}/inspect.wsgi
WSGIScriptAlias /location-inner {apps}/inspect.wsgi
WSGIScriptAlias /by-env {apps}/inspect.wsgi
WSGIScriptAlias /directory {apps}/sub/inspect.wsgi
WSGIScriptAlias "/quoted space" "{apps}/with space.wsgi"
WSGIScriptAliasMatch ^/match/([a-z]+)(/.*)? {apps}/dir/$1.wsgi
WSGIScriptAliasMatch ^/opt-match/([a-z]+) {apps}/dir/$1.wsgi callable-object=other process-group=two \\
    application-group=%{GLOBAL}

<Location /location>
WSGIProcessGroup two
WSGICallableObject other
</Location>
<Location /location-inner>
WSGIProcessGroup two
</Location>
<Location /location-inner/back>
WSGIProcessGroup one
</Location>
<Location /by-env>
SetEnvIf Request_URI "two" WHICH=two
SetEnvIf Request_URI "one" WHICH=one
SetEnvIf Request_URI "other" CALLABLE=other
SetEnvIf Request_URI "application" CALLABLE=application
WSGIProcessGroup %{ENV:WHICH}
WSGICallableObject %{ENV:CALLABLE}
</Location>
<Directory {apps}/sub>
WSGIProcessGroup two
WSGICallableObject other
</Directory>

Alias /handled {apps}/handled
<Directory {apps}/handled>
Options +ExecCGI
AddHandler wsgi-script .wsgi
</Directory>
Alias /set-handler {apps}/sethandler
<Directory {apps}/sethandler>
Options +ExecCGI
SetHandler wsgi-script
</Directory>
Alias /no-exec {apps}/noexec
<Directory {apps}/noexec>
SetHandler wsgi-script
</Directory>
Alias /htaccess {apps}/htaccess
<Directory {apps}/htaccess>
AllowOverride FileInfo
Options +ExecCGI
</Directory>
<VirtualHost *:{port}>
ServerName localhost
</VirtualHost>
<VirtualHost *:{port}>
ServerName vhost.example
WSGIProcessGroup two
WSGIScriptAlias /v {apps}/inspect.wsgi
</VirtualHost>
<VirtualHost *:{port}>
ServerName inherits.example
WSGIScriptAlias /v {apps}/inspect.wsgi
</VirtualHost>
"""

MARKED = (product.TESTS / "apps" / "inspect.wsgi").read_text()


@pytest.fixture(scope="module")
def server(shared, request) -> Apache:
    apache = Apache(CONFIG)
    for name in (
        "sub/inspect.wsgi",
        "with space.wsgi",
        "handled/a.wsgi",
        "sethandler/b.py",
        "noexec/c.wsgi",
        "htaccess/d.wsgi",
    ):
        apache.write(name, MARKED)
    apache.write("handled/plain.txt", "static text")
    apache.write("htaccess/.htaccess", "AddHandler wsgi-script .wsgi\nWSGICallableObject other\n")
    return shared(apache)


def test_script_alias(server: Apache) -> None:
    """R10: WSGIScriptAlias needs no ExecCGI; the server's group applies."""
    v = look(server, "/plain/rest")
    assert (v["process_group"], v["script_name"], v["path_info"]) == ("one", "/plain", "/rest")
    assert v["script_filename"] == v["file"] == f"{server.apps}/inspect.wsgi"


def test_script_alias_ends_at_a_segment(server: Apache) -> None:
    """R10: /plain does not match /plainly."""
    server.allow_log("AH00128")
    assert server.get("/plainly").status == 404


def test_alias_options(server: Apache) -> None:
    """R10: options of the alias stand for the directives."""
    v = look(server, "/options", headers=[("Authorization", "Basic eDp5")])
    assert (v["process_group"], v["callable"], v["authorization"]) == ("two", "other", "Basic eDp5")


def test_first_alias_wins(server: Apache) -> None:
    """R10: the first matching alias wins."""
    v = look(server, "/first/deeper")
    assert (v["name"], v["path_info"]) == ("one", "/deeper")


def test_alias_to_a_directory(server: Apache) -> None:
    """R10: an alias to a directory picks the script by the next segment."""
    assert look(server, "/dir/one.wsgi/rest")["name"] == "one"
    v = look(server, "/dir/two.wsgi/rest")
    assert (v["name"], v["script_name"], v["path_info"]) == ("two", "/dir/two.wsgi", "/rest")


def test_alias_to_a_missing_script(server: Apache) -> None:
    """Reference: a target that is missing is a 404 and named in the log."""
    server.expect_log(r"none\.wsgi")
    assert server.get("/dir/none.wsgi").status == 404
    server.allow_log(r"WSGI0136|MWR02\d\d|AH\d+")
    assert server.get("/dir/").status in (403, 404)


def test_quoted_alias(server: Apache) -> None:
    """R10: quoted arguments."""
    v = look(server, "/quoted%20space/x")
    assert (v["script_name"], v["file"]) == ("/quoted space", f"{server.apps}/with space.wsgi")


def test_alias_match(server: Apache) -> None:
    """R10: WSGIScriptAliasMatch substitutes groups."""
    assert look(server, "/match/one")["name"] == "one"
    assert look(server, "/match/two/x/y")["name"] == "two"


def test_alias_match_options(server: Apache) -> None:
    """R10: WSGIScriptAliasMatch takes options too."""
    v = look(server, "/opt-match/two")
    assert (v["name"], v["callable"], v["process_group"]) == ("two", "other", "two")


def test_location(server: Apache) -> None:
    """R10: directives in <Location> override the server's."""
    v = look(server, "/location/x")
    assert (v["process_group"], v["callable"], v["callable_object"]) == ("two", "other", "other")


def test_location_merging(server: Apache) -> None:
    """R10: an inner <Location> overrides an outer one."""
    assert look(server, "/location-inner/x")["process_group"] == "two"
    assert look(server, "/location-inner/back")["process_group"] == "one"


def test_directory(server: Apache) -> None:
    """R10: directives in the <Directory> of the script."""
    v = look(server, "/directory")
    assert (v["process_group"], v["callable"]) == ("two", "other")


@pytest.mark.parametrize("which", ["one", "two"])
@pytest.mark.parametrize("callable_object", ["application", "other"])
def test_env_selectors(server: Apache, which: str, callable_object: str) -> None:
    """R10: %{ENV:…} selects by a variable of the request."""
    v = look(server, f"/by-env/{which}/{callable_object}")
    assert (v["process_group"], v["callable"]) == (which, callable_object)


def test_add_handler(server: Apache) -> None:
    """R10: AddHandler wsgi-script with ExecCGI; other files stay files."""
    v = look(server, "/handled/a.wsgi/p")
    assert (v["script_name"], v["path_info"], v["process_group"]) == ("/handled/a.wsgi", "/p", "one")
    assert server.get("/handled/plain.txt").text == "static text"


def test_set_handler(server: Apache) -> None:
    """R10: SetHandler wsgi-script."""
    assert look(server, "/set-handler/b.py")["script_name"] == "/set-handler/b.py"


def test_handler_needs_exec_cgi(server: Apache) -> None:
    """Reference: without ExecCGI a handled script is a 403."""
    server.expect_log(r"ExecCGI")
    assert server.get("/no-exec/c.wsgi").status == 403


def test_htaccess(server: Apache) -> None:
    """R10: WSGICallableObject in .htaccess with AllowOverride FileInfo."""
    assert look(server, "/htaccess/d.wsgi")["callable"] == "other"


def test_virtual_host(server: Apache) -> None:
    """R10: a virtual host overrides and inherits the main server's settings."""
    assert look(server, "/v", host="vhost.example")["process_group"] == "two"
    assert look(server, "/v", host="inherits.example")["process_group"] == "one"


def test_aliases_of_the_main_server_hold_in_virtual_hosts(server: Apache) -> None:
    """R10: aliases are inherited."""
    assert look(server, "/plain", host="vhost.example")["process_group"] == "two"


def test_group_of_another_virtual_host(apache) -> None:
    """Reference: a group declared in a vhost is selectable from its ServerName only; elsewhere 500 naming it."""
    server = apache("""
WSGIApplicationGroup %{GLOBAL}
<VirtualHost *:{port}>
ServerName a.example
WSGIDaemonProcess mine
WSGIProcessGroup mine
WSGIScriptAlias / {apps}/inspect.wsgi
</VirtualHost>
<VirtualHost *:{port}>
ServerName b.example
WSGIProcessGroup mine
WSGIScriptAlias / {apps}/inspect.wsgi
</VirtualHost>
""")
    assert look(server, host="a.example")["process_group"] == "mine"
    server.expect_log("mine")
    assert server.get("/", host="b.example").status == 500


def test_unknown_group(apache) -> None:
    """R22: an unknown group is a 500 whose log line names it."""
    server = apache("WSGIScriptAlias / {apps}/inspect.wsgi\n<Location /x>\nWSGIProcessGroup nowhere\n</Location>\n"
                    "<Location /e>\nSetEnvIf Request_URI . G=from-env\nWSGIProcessGroup %{ENV:G}\n</Location>\n"
                    "WSGIApplicationGroup %{GLOBAL}")  # fmt: skip
    server.expect_log("nowhere")
    assert server.get("/x").status == 500
    server.expect_log("from-env")
    assert server.get("/e").status == 500


@pytest.mark.ours
@pytest.mark.parametrize("mpm", ["event", "worker", "prefork"])
def test_automatic_group(apache, mpm: str) -> None:
    """R11: without WSGIProcessGroup an automatic group runs the application; R5: in every MPM."""
    server = apache("WSGIScriptAlias / {apps}/inspect.wsgi\nWSGIApplicationGroup %{GLOBAL}", mpm=mpm)
    v = look(server)
    assert v["process_group"] == "" and v["multithread"] is True
    assert not [p for p in server.server_processes() if p.pid == v["pid"]], "never inside httpd"
    import os

    workers = {look(server)["pid"] for _ in range(20)}
    assert len(workers) <= min(4, os.cpu_count() or 1)


@pytest.mark.ours
def test_restrict_embedded(apache) -> None:
    """R10: WSGIRestrictEmbedded On refuses applications without WSGIProcessGroup."""
    server = apache("WSGIRestrictEmbedded On\nWSGIScriptAlias / {apps}/inspect.wsgi\nWSGIApplicationGroup %{GLOBAL}")
    server.expect_log("WSGIRestrictEmbedded|WSGIProcessGroup")
    assert server.get("/").status == 500


@pytest.mark.parametrize("mpm", ["worker", "prefork"])
def test_static_files_are_httpds(apache, mpm: str) -> None:
    """R5: the module leaves everything else alone."""
    server = apache(
        "WSGIDaemonProcess g\nWSGIProcessGroup g\nWSGIScriptAlias /app {apps}/inspect.wsgi", start=False, mpm=mpm
    )
    (server.prefix / "htdocs" / "x.txt").write_text("static")
    server.start()
    assert server.get("/x.txt").text == "static"
    server.allow_log("AH00128")
    assert server.get("/missing").status == 404


def test_names_in_ifmodule(apache) -> None:
    """STYLE 6: <IfModule wsgi_module> and <IfModule mod_wsgi.c> of existing configurations hold."""
    server = apache("""
WSGIDaemonProcess g
WSGIApplicationGroup %{GLOBAL}
<IfModule wsgi_module>
WSGIProcessGroup g
</IfModule>
<IfModule mod_wsgi.c>
WSGIScriptAlias / {apps}/inspect.wsgi
</IfModule>
""")
    assert look(server)["process_group"] == "g"


def test_tls(apache) -> None:
    """R10: over TLS wsgi.url_scheme is https and HTTPS is no key of environ."""
    if not product.has_module("ssl"):
        pytest.skip("no mod_ssl")
    import json

    from harness import http

    server = apache("WSGIDaemonProcess g\nWSGIProcessGroup g\nWSGIApplicationGroup %{GLOBAL}\n"
                    "WSGIScriptAlias / {apps}/conform.wsgi", tls=True)  # fmt: skip
    r = http.fetch(server.tls_port, "/environ-json", tls=True)
    v = {k: x for k, (_, x) in json.loads(r.body).items()}
    assert v["wsgi.url_scheme"] == "https" and "HTTPS" not in v
    assert v["SERVER_PORT"] in ("443", str(server.tls_port))
    assert http.fetch(server.tls_port, "/large-one?300000", tls=True).complete
    assert http.fetch(server.tls_port, "/echo", "POST", body=b"t" * 200000, tls=True).body == b"t" * 200000
    if product.is_ours():
        server.expect_log("deliberate-midway")
        server.allow_log(r"MWR0\d{3}|Traceback|File |Error|  \S")
        assert http.fetch(server.tls_port, "/error-midway", tls=True).truncated
