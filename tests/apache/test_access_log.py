"""Items of mod_log_config's formats (D6, and N4's names): what a request had to do with workers, and a record as JSON."""

from __future__ import annotations

import json
import re
import time

import pytest

from harness import http
from harness.wait import wait_until

pytestmark = pytest.mark.ours
ITEMS = "%{process_group}^WS|%{worker_pid}^WS|%{queue_time}^WS|%{app_time}^WS|%{other}^WS|%^WS|%U"
SITE = """
LogFormat "ITEMS" items
CustomLog "{prefix}/items" items
CustomLog "{prefix}/json" "%^WJ"
WSGIDaemonProcess g processes=1 threads=1
Alias /file {apps}/htpasswd
WSGIScriptAlias / {apps}/life.wsgi process-group=g application-group=%{GLOBAL}
"""


@pytest.fixture(params=["event", "prefork"])
def server(apache, request):
    one = apache(SITE.replace("ITEMS", ITEMS), mpm=request.param, modules=["log_config"])
    wait_until(one.ready, what="the worker is ready")
    return one


def lines(server, name: str, count: int) -> list[str]:
    path = server.prefix / name

    def read():
        found = path.read_text().splitlines() if path.exists() else []
        return found if len(found) >= count else None

    return wait_until(read, 10, f"{count} lines in {name}")


def test_items(server) -> None:
    """D6: group, process, time in the queue and in the application; a dash where no worker had to do with it."""
    (pid,) = server.ready()
    assert server.get("/sleep?0.2").status == 200
    server.get("/file")
    slow, static = lines(server, "items", 2)
    group, worker, queue, app, other, bare, path = slow.split("|")
    assert (group, worker, other, bare, path) == ("g", str(pid), "-", "-", "/sleep")
    assert re.fullmatch(r"\d+\.\d{3}", queue) and float(queue) < 0.15
    assert 0.199 <= float(app) < 2
    assert static == "-|-|-|-|-|-|/file"


def test_time_in_the_queue(server) -> None:
    """D6: a request that waits for the one thread has waited, and not run, for so long."""
    with http.Connection(server.port) as first, http.Connection(server.port) as second:
        first.send(http.build(target="/wait?go"))
        wait_until(lambda: any(w["running"] for w in server.workers()), 10, "the first runs")
        second.send(http.build(target="/quick"))
        wait_until(lambda: sum(w["sent"] for w in server.workers()), 10, "the second waits")
        time.sleep(0.3)  # so long it shall have waited
        (server.scratch / "go").touch()
        assert first.response().status == second.response().status == 200
    (waited,) = (line.split("|") for line in lines(server, "items", 2) if line.endswith("/quick"))
    assert float(waited[2]) >= 0.3 > float(waited[3])


def test_json(server) -> None:
    """D6: every line is one JSON object, whatever the client sends."""
    (pid,) = server.ready()
    headers = [("User-Agent", 'a "quoted" \\ agent \x80\xff'), ("Referer", "https://example.org/")]
    assert server.get('/q?a="b"%22', headers=headers).status == 200
    server.get("/file")
    app, static = (json.loads(line) for line in lines(server, "json", 2))
    assert app["target"] == '/q?a="b"%22' and app["method"] == "GET" and app["status"] == 200
    assert app["user_agent"].startswith('a "quoted" \\ agent ') and app["referer"].startswith("https://example.org/")
    assert (app["process_group"], app["worker_pid"]) == ("g", pid)
    assert 0 <= app["queue_seconds"] < 5 and 0 <= app["app_seconds"] < 5 and app["seconds"] >= 0
    assert app["bytes"] > 0 and app["client"] == "127.0.0.1" and app["request_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", app["time"])
    assert static["process_group"] == "" and static["queue_seconds"] is None and static["target"] == "/file"
