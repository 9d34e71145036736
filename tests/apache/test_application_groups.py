"""R12: application groups are processes keyed by configuration, bounded, and end when idle."""

from __future__ import annotations

import os

import pytest

from harness import http
from harness.apache import Apache
from harness.inspect import look
from harness.wait import wait_until


def workers(server: Apache) -> set[int]:
    """Pids of Python processes."""
    return {p.pid for p in server.processes() if any("MOD_WSGI_RS_PLAN" in a for a in p.cmdline) or _is_python(p.pid)}


def _is_python(pid: int) -> bool:
    try:
        return "/python" in os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False


@pytest.mark.ours
def test_literal_groups_are_processes(apache) -> None:
    """R12: two literal application groups run in processes of their own; the same name shares them."""
    server = apache("""
WSGIDaemonProcess g processes=1
WSGIProcessGroup g
WSGIScriptAlias /global {apps}/inspect.wsgi process-group=g application-group=%{GLOBAL}
WSGIScriptAlias /a {apps}/inspect.wsgi process-group=g application-group=first
WSGIScriptAlias /b {apps}/inspect.wsgi process-group=g application-group=second
WSGIScriptAlias /c {apps}/inspect.wsgi process-group=g application-group=first
""")
    pids = {path: look(server, path)["pid"] for path in ("/global", "/a", "/b", "/c")}
    assert pids["/a"] == pids["/c"] and len(set(pids.values())) == 3
    assert look(server, "/a")["application_group"] == "first" and look(server, "/global")["application_group"] == ""


@pytest.mark.ours
def test_ports_in_host_start_nothing(apache) -> None:
    """R12, pitfall S16: 1,000 requests with different Host ports and names start no process."""
    server = apache(
        "WSGIDaemonProcess g processes=1 threads=2\nWSGIProcessGroup g\nWSGIScriptAlias / {apps}/inspect.wsgi"
    )
    first = look(server)
    assert first["application_group"] != "", "the default is %{RESOURCE}"
    before = workers(server)
    assert len(before) == 1 or first["pid"] in before
    with server.connect() as c:
        for i in range(1000):
            host = f"localhost:{10000 + i}" if i % 2 else f"name{i}.example"
            r = c.request(host=host)
            assert r.status == 200
    assert workers(server) == before
    assert look(server, host="localhost:4711")["pid"] == first["pid"]


@pytest.mark.ours
def test_default_group_of_two_scripts(apache) -> None:
    """R12: with %{RESOURCE} two scripts are two application groups."""
    server = apache("WSGIDaemonProcess g\nWSGIProcessGroup g\nWSGIScriptAlias /a {apps}/dir/one.wsgi\n"
                    "WSGIScriptAlias /b {apps}/dir/two.wsgi")  # fmt: skip
    assert look(server, "/a")["pid"] != look(server, "/b")["pid"]
    assert look(server, "/a")["application_group"].endswith("|/a")


@pytest.mark.ours
def test_maximum(apache) -> None:
    """R12: above maximum-application-groups a request gets 503; one line names the option."""
    server = apache("""
WSGIDaemonProcess g processes=1 threads=1 maximum-application-groups=2
WSGIScriptAlias /a {apps}/inspect.wsgi process-group=g application-group=a
WSGIScriptAlias /b {apps}/inspect.wsgi process-group=g application-group=b
WSGIScriptAlias /c {apps}/inspect.wsgi process-group=g application-group=c
WSGIScriptAlias /g {apps}/inspect.wsgi process-group=g application-group=%{GLOBAL}
""")
    # with literal names these are all loaded at start or at first use; only two may exist
    server.expect_log("maximum-application-groups")
    statuses = sorted(server.get(p).status for p in ("/a", "/b", "/c"))
    assert statuses == [200, 200, 503]
    assert server.get("/g").status == 200, "%{GLOBAL} does not count"
    refused = next(p for p in ("/a", "/b", "/c") if server.get(p).status == 503)
    for _ in range(20):
        assert server.get(refused).status == 503
    assert len(server.log.find("maximum-application-groups")) <= 3, "not once for each request"


@pytest.mark.ours
def test_idle_groups_end(apache) -> None:
    """R12: application-idle ends a group's workers; the next request starts them again."""
    server = apache("WSGIDaemonProcess g processes=1 threads=2 application-idle=1\nWSGIProcessGroup g\n"
                    "WSGIScriptAlias / {apps}/inspect.wsgi")  # fmt: skip
    first = look(server)["pid"]
    wait_until(lambda: first not in workers(server), 15, "the idle worker ends")
    second = look(server)["pid"]
    assert second != first


@pytest.mark.ours
def test_growth(apache) -> None:
    """R12: an application group starts with one process and grows to processes= under load."""
    server = apache(
        "WSGIDaemonProcess g processes=3 threads=1\nWSGIProcessGroup g\nWSGIScriptAlias / {apps}/conform.wsgi"
    )
    server.get("/exact?first")
    import threading

    found: set[str] = set()

    def load() -> bool:
        threads = [threading.Thread(target=lambda: found.add(server.get("/slow?0.2").text)) for _ in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return len(found) == 3

    wait_until(load, 20, "three processes serve")


@pytest.mark.ours
def test_notice(apache) -> None:
    """R12: a notice at start says what WSGIApplicationGroup %{GLOBAL} saves."""
    server = apache("WSGIDaemonProcess g\nWSGIProcessGroup g\nWSGIScriptAlias / {apps}/inspect.wsgi")
    assert look(server)["process_group"] == "g"
    assert server.log.wait(r"WSGIApplicationGroup %\{GLOBAL\}")


def test_many_connections_one_group(apache) -> None:
    """R12: the global group alone serves many connections."""
    server = apache(
        "WSGIDaemonProcess g\nWSGIProcessGroup g\nWSGIApplicationGroup %{GLOBAL}\nWSGIScriptAlias / {apps}/inspect.wsgi"
    )
    connections = [http.Connection(server.port) for _ in range(40)]
    assert {c.request().status for c in connections} == {200}
    for c in connections:
        c.close()
