"""The site of the conformance tests, the same on every server.

What a server must provide (a new server is one more entry of KINDS):

- group `main`: 2 processes of 8 threads; group `single`: 1 process of 1 thread, its `processes` option not given
- conform.wsgi at / and at /mounted/below; cases.wsgi at /case, and in the group `single` at /single; the callable
  `validated` of cases.wsgi at /checked; cases.wsgi with streamed request bodies at /streamed
- /limited: request bodies up to 1000 bytes; /auth-passed and /environ-json/auth-passed: Authorization reaches the
  application; /environ-json/basic: Basic authentication by apps/htpasswd
- the variable MWR_SETENV=from-setenv everywhere; HTTPS=on below /environ-json/https and HTTPS=off below
  /environ-json/https-off; several more below /environ-json/set (see below)
- slashes in paths reach the application's side as they were sent
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from . import log, product
from .apache import Apache
from .nginx import Nginx
from .server import running

APACHE = """
WSGIDaemonProcess main processes=2 threads=8
WSGIDaemonProcess single threads=1
WSGIProcessGroup main
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /mounted/below {apps}/conform.wsgi
WSGIScriptAlias /case {apps}/cases.wsgi
WSGIScriptAlias /single {apps}/cases.wsgi process-group=single application-group=%{GLOBAL}
WSGIScriptAlias /streamed {apps}/cases.wsgi request-buffering=Off
WSGIScriptAlias /checked {apps}/cases.wsgi callable-object=validated
WSGIScriptAlias / {apps}/conform.wsgi
SetEnv MWR_SETENV from-setenv
MergeSlashes Off
<Location /limited>
LimitRequestBody 1000
</Location>
<LocationMatch "^/(auth-passed|environ-json/auth-passed)">
WSGIPassAuthorization On
</LocationMatch>
<Location /environ-json/basic>
AuthType Basic
AuthName test
AuthUserFile {apps}/htpasswd
Require valid-user
</Location>
<Location /environ-json/https>
SetEnv HTTPS on
</Location>
<Location /environ-json/https-off>
SetEnv HTTPS off
</Location>
<Location /environ-json/set>
SetEnv MWR_LATIN "café"
SetEnv MWR_EMPTY ""
SetEnv app.setting "of the application"
SetEnv HTTP_X_SET "from the server"
SetEnv REMOTE_USER "from the server"
SetEnv REQUEST_METHOD FORGED
SetEnv SCRIPT_NAME /forged
SetEnv SERVER_NAME forged
SetEnv HTTP_HOST forged
SetEnv wsgi.errors forged
SetEnv wsgi.url_scheme forged
SetEnv mod_wsgi.process_group forged
SetEnv PATH /forged
</Location>
"""


NGINX_HTTP = """
wsgi_daemon_process main processes=2 threads=8;
wsgi_daemon_process single threads=1;
"""
NGINX = """
wsgi_process_group main;
wsgi_pass_authorization off;
wsgi_param MWR_SETENV from-setenv;
client_max_body_size 0;
large_client_header_buffers 64 64k;
keepalive_timeout 3s;
location /mounted/below { wsgi_script {apps}/conform.wsgi mount=/mounted/below; }
location /case { wsgi_script {apps}/cases.wsgi mount=/case; }
location /single { wsgi_script {apps}/cases.wsgi mount=/single; wsgi_process_group single; }
location /streamed { wsgi_script {apps}/cases.wsgi mount=/streamed; wsgi_request_buffering off; }
location /checked { wsgi_script {apps}/cases.wsgi mount=/checked; wsgi_callable_object validated; }
location / {
    wsgi_script {apps}/conform.wsgi;
    location /limited { client_max_body_size 1000; wsgi_script {apps}/conform.wsgi; }
    location ~ ^/(auth-passed|environ-json/auth-passed) {
        wsgi_pass_authorization on;
        wsgi_script {apps}/conform.wsgi;
    }
    location /environ-json/https {
        wsgi_param HTTPS on;
        wsgi_script {apps}/conform.wsgi;
    }
    location /environ-json/https-off {
        wsgi_param HTTPS off;
        wsgi_script {apps}/conform.wsgi;
    }
    location /environ-json/set {
        wsgi_param MWR_SETENV from-setenv;
        wsgi_param MWR_LATIN "café";
        wsgi_param MWR_EMPTY "";
        wsgi_param app.setting "of the application";
        wsgi_param HTTP_X_SET "from the server";
        wsgi_param REMOTE_USER "from the server";
        wsgi_param wsgi.errors forged;
        wsgi_param wsgi.url_scheme forged;
        wsgi_param mod_wsgi.process_group forged;
        wsgi_param PATH /forged;
        wsgi_script {apps}/conform.wsgi;
    }
    location = /environ-json/basic {
        auth_basic test;
        auth_basic_user_file {apps}/htpasswd;
        wsgi_param REMOTE_USER $remote_user;
        wsgi_param AUTH_TYPE Basic;
        wsgi_script {apps}/conform.wsgi;
    }
}
"""


class Site(Apache):
    """The site on Apache, and what is Apache's own in how it refuses things."""

    SOFTWARE = "Apache"
    #: what configuration says of a request replaces what the client or the server says
    SETTINGS_WIN = False
    LENIENT: dict[str, bytes | None] = {}
    #: SERVER_PORT is the one of the Host header
    PORT_FROM_HOST = True
    #: lines of the server's log about requests that are not HTTP, or whose client left
    CLIENT_FAULTS = r"\[(core|http|wsgi|reqtimeout):error\].*AH\d{5}"
    #: lines about a body that exceeds its limit
    TOO_LARGE = r"AH01587|AH00589|AH01588|LimitRequestBody|Requested content-length|exceeds|WSGI0142"
    #: records of an application's exception
    TRACEBACK = log.EXCEPTION


@dataclasses.dataclass(frozen=True)
class Body:
    """A kind of request body that a server treats in its own way."""

    chunked: bool
    #: more than what is handed to the worker with the request
    large: bool
    #: read by the application while it comes
    streamed: bool = False
    mount: str = "/case"


BODIES = {
    "inline": Body(chunked=False, large=False),
    "inline-chunked": Body(chunked=True, large=False),
    "spooled": Body(chunked=False, large=True),
    "spooled-chunked": Body(chunked=True, large=True),
    "streamed": Body(chunked=False, large=True, streamed=True, mount="/streamed"),
    "streamed-chunked": Body(chunked=True, large=True, streamed=True, mount="/streamed"),
}


class NginxSite(Nginx):
    """The site on nginx, and what is nginx's own in how it refuses things."""

    SOFTWARE = "nginx/"
    SETTINGS_WIN = True
    #: requests that nginx's own parser takes although RFC 9112 would have them refused (or the other way round): what
    #: the application may see of them, None for a refusal
    LENIENT = {
        "length-with-blanks-around": None,
        "chunk-size-two-words": b"abc",
        "chunk-too-long-for-its-data": b"abc\r",
        "extension-with-nul": b"abc",
        "trailer-without-colon": b"abc",
        "trailer-missing-end": b"abc",
        "control-character-in-a-value": b"abc",
        "no-colon": b"abc",
        "name-that-is-no-token": b"abc",
        "name-with-high-byte": b"abc",
    }
    PORT_FROM_HOST = False
    CLIENT_FAULTS = r"\[(info|error)\].*(client|MWR02\d\d)"
    TOO_LARGE = r"client intended to send too large|MWR02\d\d"
    TRACEBACK = Site.TRACEBACK


KINDS = {kind: kind for kind in ("event", "worker", "prefork")}
if product.has_nginx():
    KINDS["nginx"] = ""


@contextlib.contextmanager
def site(kind: str) -> Iterator[Site | NginxSite]:
    """The site on a server of that kind, running."""
    config = APACHE
    if not product.is_ours():
        # A stand-in refuses chunked requests unless told, and streams every body.
        config = "WSGIChunkedRequest On\n" + config.replace(" request-buffering=Off", "")
    made = NginxSite(NGINX, http_config=NGINX_HTTP) if kind == "nginx" else Site(config, mpm=KINDS[kind])
    with running(made) as server:
        assert isinstance(server, (Site, NginxSite))
        yield server
