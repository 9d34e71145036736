"""The nginx adapter end to end: nginx's worker process, a Python worker, and back."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable

import pytest

from harness import inspect, procs
from harness.nginx import Nginx
from harness.wait import wait_until

BLOG = """
wsgi_process_group blog;
location / { wsgi_script {apps}/inspect.wsgi; }
location /conform { wsgi_script {apps}/conform.wsgi mount=/conform; }
location /static/ { alias {apps}/frameworks/static/; }
"""
GROUP = "wsgi_daemon_process blog processes=2 threads=5;"


@pytest.fixture(scope="module")
def blog(shared: Callable[..., Nginx]) -> Nginx:
    return shared(BLOG, http_config=GROUP)


def test_the_configuration_of_the_issue(blog: Nginx) -> None:
    """N1: an application, its group, static files beside it."""
    seen = inspect.look(blog, "/some/path?a=b")
    assert (seen["process_group"], seen["application_group"]) == ("blog", "")
    assert (seen["script_name"], seen["path_info"]) == ("", "/some/path")
    static = blog.get("/static/style.css")
    assert static.status == 200 and static.header("Content-Type") == "text/css"


def test_head_and_body_leave_in_one_write(blog: Nginx) -> None:
    """N14: a small answer has its length and no chunks."""
    r = blog.get("/conform/exact?on")
    assert (r.status, r.framing, r.text) == (200, "length", "exact:on")


def test_a_mount_is_no_prefix_of_words(blog: Nginx) -> None:
    """N2: `location /conform` matches /conformity, of which mount=/conform is no part."""
    assert blog.get("/conform/exact?on").status == 200
    assert blog.get("/conformity").status == 404


def test_connections_to_workers_are_kept(blog: Nginx) -> None:
    """N8: many requests, few connections."""
    with blog.connect() as c:
        for i in range(50):
            assert c.request(target=f"/conform/exact?{i}").text == f"exact:{i}"
    for p in blog.server_processes():
        sockets = [os.readlink(f"/proc/{p.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{p.pid}/fd")]
        assert len([s for s in sockets if s.startswith("socket:")]) < 40


def test_params_have_variables_and_win(nginx: Callable[..., Nginx]) -> None:
    """N2: wsgi_param adds to the environ and replaces what is there; the names of the interfaces are no place for it."""
    server = nginx(
        """
        wsgi_process_group blog;
        location / {
            wsgi_script {apps}/conform.wsgi;
            wsgi_param APP_SETTING "of $host";
            wsgi_param SERVER_NAME other;
            wsgi_param wsgi.errors forged;
            wsgi_param MWR_ABSENT $arg_absent if_not_empty;
            wsgi_param HTTPS on;
        }
        """,
        http_config=GROUP,
    )
    e = server.get("/environ-json", host="example.org").body
    seen = {k: v for k, (_, v) in json.loads(e).items()}
    assert seen["APP_SETTING"] == "of example.org" and seen["SERVER_NAME"] == "other"
    assert seen["wsgi.url_scheme"] == "https" and "HTTPS" not in seen
    assert "MWR_ABSENT" not in seen and seen["wsgi.errors"] != "forged"


def test_groups_are_separate_processes(nginx: Callable[..., Nginx]) -> None:
    """N1: options reach the workers; application groups are processes of their own."""
    server = nginx(
        """
        location /a { wsgi_script {apps}/inspect.wsgi; wsgi_process_group a; }
        location /b { wsgi_script {apps}/inspect.wsgi; wsgi_process_group b; }
        location /own { wsgi_script {apps}/inspect.wsgi; wsgi_process_group a; wsgi_application_group own; }
        location /automatic { wsgi_script {apps}/inspect.wsgi; }
        """,
        http_config="wsgi_daemon_process a env=MWR_X=1 umask=0027; wsgi_daemon_process b;",
    )
    a, b, own, automatic = (inspect.look(server, t) for t in ("/a", "/b", "/own", "/automatic"))
    assert len({a["pid"], b["pid"], own["pid"], automatic["pid"]}) == 4
    assert a["environ"]["MWR_X"] == "1" and a["umask"] == 0o027 and "MWR_X" not in b["environ"]
    assert own["application_group"] == "own" and automatic["process_group"] == ""


def test_a_test_of_the_configuration_changes_nothing(nginx: Callable[..., Nginx]) -> None:
    """N9: `nginx -t` beside a live server: the same processes, sockets and answers."""
    server = nginx(BLOG, http_config=GROUP)
    pid = inspect.look(server)["pid"]

    def state() -> object:
        return sorted((p.pid, p.start) for p in server.processes()), sorted(server.sockets())

    wait_until(lambda: len(server.sockets()) >= 3, 10)
    before = state()
    code, said = server.configtest()
    assert code == 0, said
    assert state() == before
    assert inspect.look(server)["pid"] in {p.pid for p in server.processes()} and pid


WAITS = """
import os, time
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    open("{scratch}/" + environ["QUERY_STRING"], "w").write(str(os.getpid()))
    while not os.path.exists("{scratch}/go"):
        time.sleep(0.005)
    return [b"waited"]
"""


def test_a_killed_worker_costs_what_it_ran(nginx: Callable[..., Nginx]) -> None:
    """N8: the request that a killed worker ran is 502 and not run again, the next one is served."""
    server = nginx(
        BLOG + "location /waits { wsgi_script {apps}/waits.wsgi; }",
        http_config="wsgi_daemon_process blog processes=1 threads=2;",
        start=False,
    )
    server.write("waits.wsgi", WAITS)
    server.start()
    server.expect_log("MWR0207")
    server.allow_log("MWR0306")
    answers: list[int] = []
    slow = threading.Thread(target=lambda: answers.append(server.get("/waits?ran").status))
    slow.start()
    mark = server.scratch / "ran"
    wait_until(lambda: mark.exists() and mark.read_text(), 10)
    pid = int(mark.read_text())
    mark.unlink()
    os.kill(pid, signal.SIGKILL)
    slow.join(10)
    assert answers == [502] and not mark.exists()
    assert inspect.look(server)["pid"] != pid


def test_everything_ends_with_nginx(nginx: Callable[..., Nginx]) -> None:
    """N9: a stop leaves no process and no socket (judged by the harness, too)."""
    server = nginx(BLOG, http_config=GROUP)
    inspect.look(server)
    seen = server.processes()
    server.stop(signal.SIGQUIT)
    assert not [p for p in seen if p.alive()]
    assert procs.look(os.getpid())
