"""The directory walk to an aliased script: AllowOverride has its documented default, and is heeded where it is set."""

from __future__ import annotations

import pytest

from harness.apache import Apache
from harness.server import running

APP = """def application(environ, start_response):
    start_response("200 OK", [("X-Place", environ.get("PLACE", "none"))])
    return [b"application"]

def other(environ, start_response):
    start_response("200 OK", [])
    return [b"other"]
"""

CONFIG = """
WSGIDaemonProcess g
WSGIProcessGroup g
WSGIApplicationGroup %{GLOBAL}
WSGIScriptAlias /open {apps}/open/app.wsgi
WSGIScriptAlias /closed {apps}/closed/app.wsgi
WSGIScriptAlias /located {apps}/closed/app.wsgi
WSGIScriptAlias / {apps}/unset/app.wsgi
SetEnv PLACE server
<Directory {apps}/open>
AllowOverride FileInfo
</Directory>
<Directory {apps}/closed>
Require all denied
</Directory>
<Location /located>
Require all granted
</Location>
"""


@pytest.mark.ours
def test_walk() -> None:
    """R10: settings of server, <Directory>, <Location> and .htaccess reach an aliased script."""
    apache = Apache(CONFIG, allow_override="")
    for place in ("open", "closed", "unset"):
        apache.write(f"{place}/app.wsgi", APP)
        if place != "closed":
            apache.write(f"{place}/.htaccess", "WSGICallableObject other\n")
    with running(apache) as server:
        unset = server.get("/")
        assert (unset.status, unset.body) == (200, b"application"), "a .htaccess that nothing allows was read"
        assert unset.header("X-Place") == "server"
        assert server.get("/open/x").body == b"other", "a .htaccess that is allowed was not read"
        server.expect_log("AH01630")
        assert server.get("/closed").status == 403, "<Directory> was not heeded"
        assert server.get("/located").status == 200, "<Location> was not heeded"
