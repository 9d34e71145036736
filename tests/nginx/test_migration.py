"""The configurations of docs/nginx-migration.md, as they stand there (N18): each `after` serves what its `before` served."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from harness import product
from harness.nginx import Nginx
from harness.wait import wait_until

TEXT = (product.ROOT / "docs" / "nginx-migration.md").read_text()
BLOCKS = {(when, what): text for when, what, text in re.findall(r"```nginx (before|after) (\w+)\n(.*?)```", TEXT, re.S)}
APP = """
import json
NAMES = ("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "HTTP_HOST", "CONTENT_TYPE", "CONTENT_LENGTH")
def application(environ, start_response):
    seen = {k: environ.get(k) or "" for k in NAMES}
    seen["body"] = environ["wsgi.input"].read().decode()
    start_response("200 OK", [("Content-Type", "application/json"), ("X-Debug", "1")])
    return [json.dumps(seen).encode()]
"""


def make(nginx: Callable[..., Nginx], text: str, **kw: Any) -> Nginx:
    """A server with a block of the page, whose places are this test's; not started."""
    server = nginx("", server=False, start=False, **kw)
    server.write("blog.wsgi", APP)
    server.write("blog.py", APP)
    for old, new in (
        ("listen 80;", f"listen 127.0.0.1:{server.port};"),
        ("/srv/blog/app.wsgi", f"{server.apps}/blog.wsgi"),
        ("/srv/blog/static/", f"{server.apps}/frameworks/static/"),
        ("/run/blog.sock", f"{server.run}/blog.sock"),
        (" python-home=/srv/blog/venv user=blog group=blog", ""),
    ):
        text = text.replace(old, new)
    assert "/srv/" not in text and "=blog" not in text, text
    server.config = text
    return server


def answers(server: Nginx) -> list[Any]:
    """What clients see."""
    posted = server.get("/a/b%20c?d=e", method="POST", body=b"x=1", headers=[("Content-Type", "text/plain")])
    return [
        json.loads(server.get("/").body),
        json.loads(posted.body),
        posted.status,
        server.get("/static/style.css").header("Content-Type"),
        "css" in server.get("/static/style.css").header("Content-Type") and server.get("/static/none").status,
    ]


def test_the_page_has_both_ways() -> None:
    """N18"""
    assert set(BLOCKS) == {(when, what) for when in ("before", "after") for what in ("uwsgi", "gunicorn")}


def test_from_gunicorn(nginx: Callable[..., Nginx]) -> None:
    """N18: proxy_pass to gunicorn, and the same application in the module."""
    pytest.importorskip("gunicorn")
    before = make(nginx, BLOCKS["before", "gunicorn"])
    before.allow_log("No such file or directory|is buffered")
    command = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{before.run}/blog.sock", "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--threads", "4", "--chdir", str(before.apps), "blog:application"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        socket = pathlib.Path(f"{before.run}/blog.sock")
        wait_until(socket.exists, 20)
        socket.chmod(0o777)
        before.start()
        old = answers(before)
    finally:
        process.terminate()
        process.wait(20)
    before.stop()
    after = make(nginx, BLOCKS["after", "gunicorn"])
    after.allow_log("No such file or directory")
    after.start()
    port = {"HTTP_HOST": "localhost"}
    assert [a if not isinstance(a, dict) else a | port for a in answers(after)] == [
        a if not isinstance(a, dict) else a | port for a in old
    ]


def test_from_uwsgi(nginx: Callable[..., Nginx]) -> None:
    """N18: nginx takes both configurations, and the new one serves, without the header that it hides."""
    if not pathlib.Path("/etc/nginx/uwsgi_params").exists():
        pytest.skip("this nginx brings no /etc/nginx/uwsgi_params")
    code, said = make(nginx, BLOCKS["before", "uwsgi"]).configtest()
    assert code == 0, said
    after = make(nginx, BLOCKS["after", "uwsgi"])
    after.allow_log("No such file or directory")
    after.start()
    root, posted, status, style, missing = answers(after)
    assert (root["PATH_INFO"], root["SCRIPT_NAME"]) == ("/", "")
    assert (posted["PATH_INFO"], posted["QUERY_STRING"], posted["body"], status) == ("/a/b c", "d=e", "x=1", 200)
    assert (style, missing) == ("text/css", 404)
    r = after.get("/")
    assert r.header("X-Debug") is None
