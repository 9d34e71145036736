"""The server that the conformance tests share, one for each MPM."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness import product
from harness.apache import Apache, running

CONFIG = """
WSGIDaemonProcess main processes=2 threads=8
WSGIProcessGroup main
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /mounted/below {apps}/conform.wsgi
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
"""


@pytest.fixture(scope="session", params=["event", "prefork"])
def server(request: pytest.FixtureRequest) -> Iterator[Apache]:
    """A daemon group of 2 processes of 8 threads that runs apps/conform.wsgi."""
    # a stand-in refuses chunked requests unless told
    extra = "" if product.is_ours() else "WSGIChunkedRequest On\n"
    with running(extra + CONFIG, mpm=request.param) as apache:
        yield apache
