"""N13: mistakes in the configuration fail `nginx -t` with file, line, directive, and what to do: one of each kind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from harness.nginx import Nginx, has_cache

S = "wsgi_script {apps}/inspect.wsgi;"

#: name: (lines of the server block, lines of the http block, what is said, the line that is named)
MISTAKES = {
    "option-not-a-number": (
        "",
        "wsgi_daemon_process x threads=no;",
        "wsgi_daemon_process x: threads='no' must be a whole number",
        "threads=no",
    ),
    "option-unknown": ("", "wsgi_daemon_process x thread=5;", "did you mean 'threads'", "thread=5"),
    "option-of-httpd": (
        "",
        "wsgi_daemon_process x socket-timeout=5;",
        "no option on nginx, where wsgi_read_timeout",
        "socket-timeout",
    ),
    "option-of-httpd-2": (
        "",
        "wsgi_daemon_process x response-socket-timeout=5;",
        "no option on nginx, where send_timeout",
        "socket-timeout",
    ),
    "user-unknown": (
        "",
        "wsgi_daemon_process x user=nobody-here;",
        "user 'nobody-here' does not exist",
        "user=nobody-here",
    ),
    "interpreter-missing": ("", "wsgi_daemon_process x python-home=/nowhere;", "/nowhere", "python-home"),
    "group-twice": (
        "",
        "wsgi_daemon_process x;\nwsgi_daemon_process x threads=2;",
        "wsgi_daemon_process x: the name is used twice; choose another",
        "threads=2",
    ),
    "group-without-name": ("", "wsgi_daemon_process;", "wsgi_daemon_process", "wsgi_daemon_process;"),
    "group-unknown": (
        "location / {\nwsgi_script {apps}/inspect.wsgi;\nwsgi_process_group y;\n}",
        "",
        "process group 'y' is not configured: add wsgi_daemon_process y or change wsgi_process_group",
        "inspect.wsgi",
    ),
    "group-by-request": (
        f"location / {{\n{S}\nwsgi_process_group '%{{ENV:x}}';\n}}",
        "",
        "wsgi_process_group: a name or %{GLOBAL} is expected here",
        "ENV:x",
    ),
    "application-group-by-request": (
        f"location / {{\n{S}\nwsgi_application_group '%{{SERVER}}';\n}}",
        "",
        "wsgi_application_group: a name or %{GLOBAL} or %{RESOURCE} is expected here",
        "SERVER}",
    ),
    "script-missing": (
        "location / {\nwsgi_script /nowhere.wsgi;\n}",
        "",
        "wsgi_script: script '/nowhere.wsgi' does not exist",
        "/nowhere.wsgi",
    ),
    "script-with-variable": (
        "location / {\nwsgi_script /srv/$host.wsgi;\n}",
        "",
        "cannot contain variables: use a location for each application",
        "$host",
    ),
    "script-twice": (f"location / {{\n{S}\nwsgi_script /other.wsgi;\n}}", "", "is duplicate", "/other.wsgi"),
    "script-outside": ("wsgi_script {apps}/inspect.wsgi;", "", "directive is not allowed here", "inspect.wsgi"),
    "mount-unknown-word": (
        "location / {\nwsgi_script {apps}/inspect.wsgi x=y;\n}",
        "",
        "'x=y' is not mount=/prefix",
        "x=y",
    ),
    "mount-relative": (
        "location / {\nwsgi_script {apps}/inspect.wsgi mount=a;\n}",
        "",
        "is not mount=/prefix",
        "mount=a",
    ),
    "param-third-word": (
        f"location / {{\n{S}\nwsgi_param A b maybe;\n}}",
        "",
        "'maybe' is not known; if_not_empty is",
        "maybe",
    ),
    "param-unknown-variable": (
        f"location / {{\n{S}\nwsgi_param A $no_such_variable;\n}}",
        "",
        'unknown "no_such_variable" variable',
        None,
    ),
    "flag": (
        f"location / {{\n{S}\nwsgi_buffering maybe;\n}}",
        "",
        'invalid value "maybe" in "wsgi_buffering"',
        "maybe",
    ),
    "time": (
        f"location / {{\n{S}\nwsgi_read_timeout soon;\n}}",
        "",
        '"wsgi_read_timeout" directive invalid value',
        "soon",
    ),
    "size": (f"location / {{\n{S}\nwsgi_buffer_size big;\n}}", "", '"wsgi_buffer_size" directive invalid value', "big"),
    "case": (
        f"location / {{\n{S}\nwsgi_next_upstream http_418;\n}}",
        "",
        'invalid value "http_418"',
        "http_418",
    ),
    "own-switch": (
        f"location / {{\n{S}\nwsgi_script_reloading sometimes;\n}}",
        "",
        "wsgi_script_reloading",
        "sometimes",
    ),
    "buffers-too-few": (
        "location / {\nwsgi_script {apps}/inspect.wsgi;\nwsgi_buffers 1 4k;\n}",
        "",
        "there must be at least 2 wsgi_buffers",
        "inspect.wsgi",
    ),
    "busy-too-small": (
        "location / {\nwsgi_script {apps}/inspect.wsgi;\nwsgi_busy_buffers_size 1k;\n}",
        "",
        "wsgi_busy_buffers_size must be equal to or greater than",
        "inspect.wsgi",
    ),
    "busy-too-large": (
        "location / {\nwsgi_script {apps}/inspect.wsgi;\nwsgi_busy_buffers_size 100m;\n}",
        "",
        "wsgi_busy_buffers_size must be less than",
        "inspect.wsgi",
    ),
    "temp-write-too-small": (
        "location / {\nwsgi_script {apps}/inspect.wsgi;\nwsgi_temp_file_write_size 1k;\n}",
        "",
        "wsgi_temp_file_write_size must be equal to or greater than",
        "inspect.wsgi",
    ),
    "temp-file-too-small": (
        "location / {\nwsgi_script {apps}/inspect.wsgi;\nwsgi_max_temp_file_size 1k;\n}",
        "",
        "wsgi_max_temp_file_size must be 0, which disables temporary files, or",
        "inspect.wsgi",
    ),
    "arguments": ("", "wsgi_python_home;", "wsgi_python_home", "wsgi_python_home"),
}


@pytest.mark.parametrize("name", list(MISTAKES))
def test_a_mistake(nginx: Callable[..., Nginx], name: str) -> None:
    """N13: it fails, and says what, where, and what to do."""
    config, http_config, message, line = MISTAKES[name]
    server = nginx(config, http_config=http_config, start=False)
    code, said = server.configtest()
    assert code != 0 and message in said and "panic" not in said, said
    text = (server.prefix / "nginx.conf").read_text().splitlines()
    places = [i for i, x in enumerate(text, 1) if line and line in x]
    assert any(f"nginx.conf:{i}" in said for i in places) or line is None, said
    assert "[emerg]" in said


@pytest.mark.parametrize("directive", ["wsgi_cache z", "wsgi_cache_valid 1m", "wsgi_cache_key $uri"])
def test_a_cache_that_nginx_has_not(nginx: Callable[..., Nginx], directive: str) -> None:
    """N13, N6: an nginx without a cache refuses its directives, and says why; scripts/nginx-versions.sh has one."""
    if has_cache():
        pytest.skip("this nginx has a cache")
    server = nginx(f"location / {{\n{S}\n{directive};\n}}", start=False)
    code, said = server.configtest()
    assert code != 0 and "this nginx was configured with --without-http-cache" in said and "nginx.conf:" in said, said


@pytest.mark.root
def test_root_is_no_user(nginx: Callable[..., Nginx]) -> None:
    """N13, DESIGN 9: uid 0 for workers is refused."""
    server = nginx("", http_config="wsgi_daemon_process x user=root;", start=False)
    code, said = server.configtest()
    assert code != 0 and "root" in said and "nginx.conf:" in said


def test_several_at_once(nginx: Callable[..., Nginx]) -> None:
    """N13: what is wrong with groups and scripts is said in one go."""
    server = nginx(
        "location /a {\nwsgi_script /nowhere.wsgi;\n}\nlocation /b {\nwsgi_script {apps}/inspect.wsgi;\nwsgi_process_group y;\n}",
        http_config="wsgi_daemon_process x user=nobody-here;",
        start=False,
    )
    code, said = server.configtest()
    assert code != 0
    for word in ("nobody-here", "/nowhere.wsgi", "'y'"):
        assert word in said


def test_a_mistake_in_a_reload_changes_nothing(nginx: Callable[..., Nginx]) -> None:
    """N9, N13: the running server goes on with what it has."""
    site = "location / { wsgi_script {apps}/inspect.wsgi; wsgi_process_group g; }"
    server = nginx(site, http_config="wsgi_daemon_process g;")
    assert server.get("/").status == 200
    before = {p.pid for p in server.processes()}
    server.expect_log("user 'nobody-here' does not exist")
    server.http_config = "wsgi_daemon_process g user=nobody-here;"
    server.write_config()
    os.kill(server.pid, signal.SIGHUP)
    server.log.wait("user 'nobody-here' does not exist")
    assert server.get("/").status == 200
    assert before <= {p.pid for p in server.processes()}
