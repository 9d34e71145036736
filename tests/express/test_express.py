"""`mod-wsgi-rs express`: what it serves, its options, its errors (R6, R7, R8)."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import re
import signal
import socket
import stat
import time

import pytest

from harness import product
from harness.express import STRANGER, Express
from harness.wait import wait_until

pytestmark = pytest.mark.ours

HELLO = """
def application(environ, start_response):
    body = ("hello " + environ["PATH_INFO"]).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
other = application
"""
INSPECT = (product.TESTS / "apps" / "inspect.wsgi").read_text()

USERS = [None, pytest.param(STRANGER, marks=pytest.mark.root)]


@pytest.mark.parametrize("user", USERS)
def test_script(express, user: str | None) -> None:
    """R6: a script file, as root (serving as another user, said aloud) and without privileges."""
    x: Express = express(user=user)
    x.write("app.wsgi", INSPECT)
    x.start("app.wsgi")
    v = json.loads(x.get("/some/path").body)
    assert v["path_info"] == "/some/path" and v["script_name"] == "" and v["uid"] != 0
    assert v["cwd"] == str(x.work) and v["multithread"] is True
    wait_until(lambda: f":{x.port}" in x.output(), 10, "the URL is printed")
    if user is None and product.IS_ROOT:
        assert product.server_user()[0] in x.output()
    mode = stat.S_IMODE(os.stat(x.root).st_mode)
    assert mode == (0o711 if user is None and product.IS_ROOT else 0o700)
    assert x.stop() == 0


def test_module(express) -> None:
    """R6: package.module:callable from the working directory."""
    x: Express = express()
    x.write("package/__init__.py", "")
    x.write("package/web.py", HELLO.replace("other =", "site ="))
    x.start("package.web:site")
    assert x.get("/m").text == "hello /m"


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_stop(express, sig: int) -> None:
    """R2, R8: Ctrl-C and TERM end everything; a server root of its own is removed."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", root=False)
    assert x.get().status == 200
    x.stop(sig)
    assert [p.name for p in x.prefix.iterdir() if p.name not in ("work", "stdout", "stderr")] == []


def test_python_option(express) -> None:
    """R7: --python names an interpreter or a virtual environment; $VIRTUAL_ENV comes next."""
    x: Express = express()
    venv = product.make_venv(x.prefix / "venv", product.reachable_python((3, 11)) or pathlib.Path("/usr/bin/python3"))
    x.write("app.wsgi", INSPECT)
    x.start("app.wsgi", "--python", str(venv))
    assert json.loads(x.get().body)["prefix"] == str(venv)
    x.stop()
    y: Express = express(env={"VIRTUAL_ENV": str(venv)})
    y.write("app.wsgi", INSPECT)
    y.start("app.wsgi")
    assert json.loads(y.get().body)["prefix"] == str(venv)


def test_options(express) -> None:
    """R7: the options that shape the application's surroundings."""
    x: Express = express()
    x.write("app.wsgi", INSPECT)
    x.write("lib/helper.py", "")
    x.write("docs/page.html", "<p>static</p>")
    x.write("docs/sub.txt", "sub")
    x.write("extra.conf", x.words.gone)
    (x.work / "elsewhere").mkdir()
    x.start(
        "app.wsgi", "--processes", "2", "--threads", "3", "--callable-object", "other", "--mount-point", "/mounted",
        "--python-path", "lib", "--working-directory", "elsewhere", "--document-root", "docs", "--url-alias", "/alias", "docs",
        "--limit-request-body", "1000", "--setenv", "COLOUR", "blue green", "--include-file", "extra.conf", "--host", "127.0.0.1",
        "--access-log", "--log-level", "info",
    )  # fmt: skip
    v = json.loads(x.get("/mounted/rest").body)
    assert v["callable"] == "other" and v["script_name"] == "/mounted" and v["path_info"] == "/rest"
    assert v["multiprocess"] is True and v["cwd"] == str(x.work / "elsewhere")
    assert str(x.work / "lib") in v["path"]
    assert x.get("/page.html").text == "<p>static</p>" and x.get("/alias/sub.txt").text == "sub"
    assert x.get("/mounted", method="POST", body=b"x" * 1001).status == 413
    assert x.get("/extra").status == 410
    log = x.root / "access_log"
    wait_until(lambda: log.exists() and "/mounted/rest" in log.read_text(), 10)


def test_setenv_reaches_environ(express) -> None:
    """R7: --setenv is a key of environ."""
    x: Express = express()
    x.write("app.wsgi", "def application(e, s):\n    s('200 OK', [('Content-Type', 'text/plain')])\n"
            "    return [e['COLOUR'].encode()]\n")  # fmt: skip
    x.start("app.wsgi", "--setenv", "COLOUR", 'blue "green" $x')
    assert x.get().text == 'blue "green" $x'


def test_log_to_terminal(express) -> None:
    """R7: --log-to-terminal."""
    x: Express = express()
    x.write("app.wsgi", "print('said at import', flush=True)\n" + HELLO)
    x.start("app.wsgi", "--log-to-terminal", "--access-log")
    assert x.get("/logged").status == 200
    wait_until(lambda: "GET /logged" in x.output() and "said at import" in x.output(), 10)


def test_json_access_log(express) -> None:
    """D6: --access-log-format json is one object a line with the same members on both servers, and turns the log on."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.write("static.txt", "static")
    x.start("app.wsgi", "--access-log-format", "json", "--url-alias", "/static.txt", str(x.work / "static.txt"))
    x.get('/logged?a="b"', headers=[("User-Agent", 'a "quoted" \\ agent')])
    x.get("/static.txt")
    log = x.root / "access_log"
    wait_until(lambda: log.exists() and "static.txt" in log.read_text(), 10)
    records = {r["target"]: r for r in map(json.loads, log.read_text().splitlines())}
    app, static = records['/logged?a="b"'], records["/static.txt"]
    assert app["user_agent"] == 'a "quoted" \\ agent' and app["status"] == 200
    assert app["process_group"] == "express" and app["worker_pid"] > 1 and app["request_id"]
    assert 0 <= app["queue_seconds"] < 30 and 0 <= app["app_seconds"] < 30 and 0 <= app["seconds"] < 60
    assert static["queue_seconds"] is static["app_seconds"] is static["worker_pid"] is None
    assert app["user"] == app["referer"] == ""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", app["time"]), app["time"]
    assert abs(datetime.datetime.fromisoformat(app["time"]).timestamp() - time.time()) < 120
    assert static.keys() == app.keys() and len(app) == 17


def test_access_log_in_the_servers_words(express) -> None:
    """D6: --access-log-format takes a format of the web server; anything else is refused with what may be given."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    code, text = x.fail("app.wsgi", "--access-log-format", "pretty")
    assert code == 2 and "--access-log-format" in text and "combined, common, json" in text
    x.start("app.wsgi", "--access-log-format", 'got "%U"' if x.words.name == "Apache" else 'got "$uri"')
    x.get("/here")
    log = x.root / "access_log"
    wait_until(lambda: log.exists() and 'got "/here"\n' in log.read_text(), 10)


def test_readiness(express) -> None:
    """D10: --readiness answers health checks of load balancers; without it the URL is the application's."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", "--readiness", "--mount-point", "/app")
    wait_until(lambda: x.get("/-/mod-wsgi-rs/ready").text == "ready\n", 20)
    assert x.get("/app/x").text == "hello /x"
    x.stop()
    x = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi")
    assert x.get("/-/mod-wsgi-rs/ready").text == "hello /-/mod-wsgi-rs/ready"


def test_setup_only(express) -> None:
    """R7: --setup-only writes the configuration and starts nothing."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    code, text = x.fail("app.wsgi", "--setup-only")
    assert code == 0 and x.config() and (x.root / x.words.control).exists()
    assert x.words.control in text and f"Server:  {x.words.name} " in text


def test_server_root_of_200_bytes(express) -> None:
    """Pitfall S20: a server root longer than sun_path."""
    x: Express = express()
    x.root = x.prefix / ("r" * 100) / ("s" * 100)
    x.root.parent.mkdir()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi")
    assert x.get("/long").text == "hello /long"


def test_help() -> None:
    """R7: --help lists every option of the table."""
    import subprocess

    done = subprocess.run([str(product.binary()), "express", "--help"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0
    for name in ("host", "port", "processes", "threads", "python", "python-path", "working-directory", "callable-object",
                 "mount-point", "server-root", "user", "group", "document-root", "url-alias", "limit-request-body", "access-log",
                 "log-to-terminal", "log-level", "setup-only", "setenv", "include-file", "server", "nginx-executable"):  # fmt: skip
        assert f"--{name}" in done.stdout, name


def nothing_left(x: Express) -> None:
    left = [p.name for p in x.prefix.iterdir() if p.name not in ("work", "stdout", "stderr", "venv")]
    assert not left, f"left behind: {left}"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], ["MWR0601"]),
        (["none.wsgi"], ["MWR0602", "none.wsgi"]),
        (["no_such_package.web:app"], ["no_such_package"]),
        (["app.wsgi", "second.wsgi"], ["app.wsgi"]),
        (["broken.wsgi"], ["MWR0609", "Traceback", "deliberate-broken"]),
        (["nocallable.wsgi"], ["application"]),
        (["app.wsgi", "--callable-object", "missing"], ["missing"]),
        (["app.wsgi", "--port", "99999"], ["--port", "99999", "65535"]),
        (["app.wsgi", "--processes", "many"], ["--processes", "many"]),
        (["app.wsgi", "--log-level", "loud"], ["loud", "warn"]),
        (["app.wsgi", "--server", "iis"], ["iis", "apache"]),
        (["app.wsgi", "--colour", "blue"], ["--colour"]),
        (["app.wsgi", "--python", "/nonexistent/python"], ["/nonexistent/python"]),
        (["app.wsgi", "--python", "/bin/true"], ["/bin/true"]),
        (["app.wsgi", "--include-file", "/nonexistent.conf"], ["/nonexistent.conf"]),
        (["app.wsgi", "--document-root", "/nonexistent-docs"], ["/nonexistent-docs"]),
        (["app.wsgi", "--working-directory", "/nonexistent-wd"], ["/nonexistent-wd"]),
        (["app.wsgi", "--user", "nobody-of-this-name"], ["nobody-of-this-name"]),
        (["app.wsgi", "--user", "root"], ["--user", "uid 0"]),
    ],
    ids=lambda v: " ".join(v) or "nothing" if isinstance(v, list) else None,
)
def test_errors(express, args: list[str], words: list[str]) -> None:
    """R8: exit status other than 0, a message that names what is wrong, nothing left."""
    if "--user" in args and not product.IS_ROOT:
        pytest.skip("only root can choose a user")
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.write("second.wsgi", HELLO)
    x.write("broken.wsgi", "raise RuntimeError('deliberate-broken')\n")
    x.write("nocallable.wsgi", "x = 1\n")
    code, text = x.fail(*args)
    assert code not in (0, 70) and code > 0, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    assert "panicked" not in text
    nothing_left(x)


def test_port_taken(express) -> None:
    """R8: a port that is taken is named, and by what."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", x.port))
        s.listen()
        code, text = x.fail("app.wsgi")
        assert code != 0 and str(x.port) in text and str(os.getpid()) in text, text
    nothing_left(x)


@pytest.mark.root
def test_unreadable_directory(express) -> None:
    """R8: as root, a directory that the serving user cannot enter is named."""
    x: Express = express()
    private = x.work / "private"
    private.mkdir(mode=0o700)
    x.write("private/app.wsgi", HELLO)
    code, text = x.fail("private/app.wsgi")
    assert code != 0 and str(private) in text and "chmod" in text, text
    nothing_left(x)


@pytest.mark.root
def test_server_root_of_somebody_else(express) -> None:
    """R6: a server root that somebody else owns is refused and left alone."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.root.mkdir()
    os.chown(x.root, 12345, 12345)
    code, text = x.fail("app.wsgi")
    assert code != 0 and str(x.root) in text
    assert list(x.root.iterdir()) == [] and os.stat(x.root).st_uid == 12345


def test_no_server(express) -> None:
    """R8: a server that is not there is named, or is another program."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    code, text = x.fail("app.wsgi", x.words.executable, "/nonexistent/server")
    assert code != 0 and "/nonexistent/server" in text
    code, text = x.fail("app.wsgi", x.words.executable, "/bin/true")
    assert code != 0 and f"'/bin/true' is no {x.words.name}" in text
    nothing_left(x)


def test_second_on_the_same_root(express) -> None:
    """R6: a server root in use is refused; the first goes on."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi")
    y: Express = express()
    y.write("app.wsgi", HELLO)
    code, text = y.fail("app.wsgi", "--server-root", str(x.root))
    assert code != 0 and str(x.root) in text
    assert x.get("/still").text == "hello /still"


def test_killed_launcher(express) -> None:
    """R2: when the launcher itself is killed, nothing serves on for ever."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi")
    assert x.get().status == 200
    x._seen.update(x.processes())
    x.process.kill()
    x.process.wait()
    wait_until(lambda: not x.leftovers(), 60, "everything has ended", interval=0.2)


def test_ctl_status(express) -> None:
    """Brief: `ctl status` answers for a running server."""
    import subprocess

    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi")
    assert x.get().status == 200
    done = subprocess.run(
        [str(product.binary()), "ctl", "status", "--help"], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 0, done.stderr


def test_options_of_the_daemon_process(express) -> None:
    """L1: options of WSGIDaemonProcess are options of express: a worker is replaced after its requests."""
    x: Express = express()
    x.write("app.wsgi", "import os\n" + HELLO.replace('("hello "', '("%d " % os.getpid() + "hello "'))
    x.start("app.wsgi", "--maximum-requests", "3", "--health-check-path", "/live")
    first = x.get("/live").text
    assert {x.get("/live").text for _ in range(5)} == {first}
    wait_until(lambda: x.get().text.split()[0] != first.split()[0], 10, "the worker is replaced")
    y: Express = express()
    code, said = y.fail("app.wsgi", "--max-rss", "12")
    assert code == 2 and "from 1M to 1024G" in said


def test_variables(express) -> None:
    """D7: an option by its variable, also outside a container; the command line is stronger, the common names weaker."""
    x: Express = express(
        env={
            "MOD_WSGI_RS_CALLABLE_OBJECT": "other",
            "MOD_WSGI_RS_THREADS": "3",
            "MOD_WSGI_RS_SETENV": "SITE shop MOTTO 'open all day'",
            "MOD_WSGI_RS_ACCESS_LOG": "on",
            "MOD_WSGI_RS_HOST": "",
            "MOD_WSGI_RS_PORT": "1",
            "WEB_CONCURRENCY": "2",
            "PORT": "1",
        }
    )
    x.write("app.wsgi", INSPECT.replace("def application(", "def other("))
    x.start("app.wsgi", "--threads", "4")
    v = json.loads(x.get("/").body)
    assert v["multiprocess"] is True
    config = x.config()
    assert "processes=2 threads=4 " in config and "threads=3" not in config
    assert x.words.setenv("SITE", "shop") in config and x.words.setenv("MOTTO", "open all day") in config
    assert x.words.access_log in config
    assert x.stop() == 0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("MOD_WSGI_RS_THREADS", "many", ["'many'"]),
        ("MOD_WSGI_RS_ACCESS_LOG", "maybe", ["yes", "off", "'maybe'"]),
        ("MOD_WSGI_RS_THREDS", "1", ["names no option", "MOD_WSGI_RS_THREADS is --threads"]),
        ("WEB_CONCURRENCY", "0", ["'0'", "1..=500"]),
    ],
)
def test_bad_variable(express, name: str, value: str, words: list[str]) -> None:
    """D17: a bad variable is one clear line and a non-zero status."""
    x: Express = express(env={name: value})
    x.write("app.wsgi", HELLO)
    code, output = x.fail("app.wsgi")
    assert code == 2 and name in output and all(w in output for w in words), output
    assert len(output.strip().splitlines()) == 1


def test_stop_delay(express) -> None:
    """D6: after SIGTERM new connections are still served until the delay is over, or the second SIGTERM."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", "--stop-delay", "600")
    wait_until(lambda: "Serving" in x.output(), 20, "it has been announced")
    assert x.process
    x.process.send_signal(signal.SIGTERM)
    # The launcher has no other way to show that it has seen the signal than to go on serving.
    for _ in range(5):
        assert x.get("/").status == 200
    x.process.send_signal(signal.SIGTERM)
    assert x.process.wait(20) == 0
    y: Express = express()
    y.write("app.wsgi", HELLO)
    y.start("app.wsgi", "--stop-delay", "1")
    wait_until(lambda: "Serving" in y.output(), 20, "it has been announced")
    assert y.process
    began = time.monotonic()
    y.process.send_signal(signal.SIGTERM)
    assert y.get("/").status == 200
    assert y.process.wait(20) == 0 and time.monotonic() - began >= 1


def test_not_ready_while_it_stops(express) -> None:
    """D6, D10: with --stop-delay load balancers are turned away at once, while requests are still served."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", "--stop-delay", "600", "--readiness")
    ready = lambda: x.get("/-/mod-wsgi-rs/ready").status
    wait_until(lambda: "Serving" in x.output() and ready() == 200, 20, "it is ready and has been announced")
    assert x.process
    x.process.send_signal(signal.SIGTERM)
    wait_until(lambda: ready() == 503, 10, "load balancers are turned away")
    assert x.get("/").status == 200
    x.process.send_signal(signal.SIGTERM)
    assert x.process.wait(20) == 0
