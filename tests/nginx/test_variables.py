"""What nginx's log can say of a request and its worker (N4)."""

from __future__ import annotations

import json
import pathlib
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from harness import inspect, product
from harness.nginx import Nginx, has_cache
from harness.wait import wait_until

# The variables of nginx's own cache are among those that are asked for.
pytestmark = pytest.mark.skipif(product.has_nginx() and not has_cache(), reason="this nginx has no cache")

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
FORMAT = """
log_format t escape=json '{"uri":"$request_uri","status":"$status","group":"$wsgi_process_group",'
    '"pid":"$wsgi_worker_pid","queue":"$wsgi_queue_time","app":"$wsgi_app_time","upstream":"$upstream_addr",'
    '"upstream_status":"$upstream_status","response":"$upstream_response_time","header":"$upstream_header_time",'
    '"connect":"$upstream_connect_time","received":"$upstream_bytes_received","cache":"$upstream_cache_status"}';
wsgi_cache_path {prefix}/cache keys_zone=z:1m;
wsgi_daemon_process one processes=1 threads=1;
wsgi_daemon_process two processes=1 threads=5;
"""
SITE = """
access_log {logs}/t.log t;
location / { wsgi_script {apps}/inspect.wsgi; wsgi_process_group two; }
location /waits { wsgi_script {apps}/waits.wsgi; wsgi_process_group one; }
location /kept { wsgi_script {apps}/inspect.wsgi; wsgi_process_group two; wsgi_cache z; wsgi_cache_valid 1h; }
location /automatic { wsgi_script {apps}/inspect.wsgi; }
location /static { root {apps}; }
"""
WAITS = """
import time
def application(environ, start_response):
    open("{scratch}/" + environ["QUERY_STRING"], "w").close()
    time.sleep(float(environ["QUERY_STRING"]))
    start_response("200 OK", [])
    yield b"half"
    time.sleep(float(environ["QUERY_STRING"]))
    yield b"whole"
"""


def logged(server: Nginx, uri: str, count: int = 1) -> list[dict[str, Any]]:
    """The records of that many requests."""

    def read() -> list[dict[str, Any]]:
        lines = (server.logs / "t.log").read_text().splitlines()
        return [r for r in map(json.loads, lines) if r["uri"] == uri]

    wait_until(lambda: len(read()) >= count)
    return read()


def start(nginx: Callable[..., Nginx]) -> Nginx:
    server = nginx("", start=False)
    server.config = SITE.replace("{logs}", str(server.logs))
    server.http_config = FORMAT
    server.write("waits.wsgi", WAITS)
    server.start()
    return server


def test_the_log_tells_of_workers(nginx: Callable[..., Nginx]) -> None:
    """N4: group, process and times of the worker; nginx's own variables about its upstream."""
    server = start(nginx)
    pid = inspect.look(server, "/a")["pid"]
    (a,) = logged(server, "/a")
    assert (a["group"], a["pid"], a["status"], a["upstream_status"]) == ("two", str(pid), "200", "200")
    assert a["upstream"] == "wsgi:two" and int(a["received"]) > 100
    for name in ("queue", "app", "response", "header", "connect"):
        assert re.fullmatch(r"\d+\.\d{3}", a[name]), (name, a)
    assert a["cache"] == ""
    for _ in range(2):
        inspect.look(server, "/kept")
    miss, hit = logged(server, "/kept", 2)
    assert (miss["cache"], hit["cache"]) == ("MISS", "HIT") and miss["pid"] == str(pid)
    assert (hit["group"], hit["pid"], hit["queue"], hit["app"], hit["upstream"]) == ("two", "", "", "", "")
    inspect.look(server, "/automatic")
    assert logged(server, "/automatic")[0]["group"] == "%{GLOBAL}"
    server.allow_log("No such file or directory|is forbidden")
    assert server.get("/static").status in (403, 404)
    (s,) = logged(server, "/static")
    assert (s["group"], s["pid"], s["queue"], s["app"]) == ("", "", "", "")


def test_waiting_and_running_are_told_apart(nginx: Callable[..., Nginx]) -> None:
    """N4: what waited for the only thread has waited, and the application's time is its own."""
    server = start(nginx)
    assert server.get("/waits?0").status == 200
    first = threading.Thread(target=lambda: server.get("/waits?0.6"))
    first.start()
    wait_until((server.scratch / "0.6").exists)
    assert server.get("/waits?0.1").status == 200
    first.join(20)
    (ran,), (waited,) = (
        [{k: float(r[k]) for k in ("queue", "app", "response")} for r in logged(server, f"/waits?{q}")]
        for q in ("0.6", "0.1")
    )
    # milliseconds are cut, and two clocks are read
    assert ran["app"] >= 1.198 and waited["app"] >= 0.198, (ran, waited)
    # asked while the only thread had more than a second to go
    assert waited["queue"] >= 0.3, (ran, waited)


def test_the_documented_log_format_works(nginx: Callable[..., Nginx]) -> None:
    """N4, N18: the example of docs/nginx.md, as it stands there."""
    text = (DOCS / "nginx.md").read_text()
    (example,) = [b for b in re.findall(r"```nginx\n(.*?)```", text, re.S) if "log_format" in b]
    server = nginx("", start=False)
    server.http_config = "wsgi_daemon_process blog;" + example.replace("/var/log/nginx", str(server.logs))
    server.config = "location / { wsgi_script {apps}/inspect.wsgi; wsgi_process_group blog; }"
    server.start()
    pid = inspect.look(server, "/x")["pid"]
    log = server.logs / "wsgi.log"
    line = wait_until(lambda: log.exists() and [t for t in log.read_text().splitlines() if "/x" in t])[0]
    assert re.search(rf'"GET /x HTTP/1.1" 200 .* group=blog pid={pid} queue=0\.\d+ app=\d\.\d+', line), line


@pytest.mark.parametrize("name", ["wsgi_process_group", "wsgi_worker_pid", "wsgi_queue_time", "wsgi_app_time"])
def test_every_variable_is_documented(name: str) -> None:
    """N18"""
    assert f"`${name}`" in (DOCS / "nginx.md").read_text()
