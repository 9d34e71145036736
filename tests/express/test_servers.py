"""What the two servers of express have in common although each says it in its own way, and how one of them is chosen (N5)."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

import pytest

from harness import http, product
from harness.express import Express
from harness.wait import wait_until

pytestmark = pytest.mark.ours

HELLO = """
import time
def application(environ, start_response):
    print("asked for", environ["PATH_INFO"], flush=True)
    if environ["PATH_INFO"] == "/slow":
        print("slow request begun", file=environ["wsgi.errors"], flush=True)
        time.sleep(float(environ["QUERY_STRING"]))
    body = ("hello " + environ["PATH_INFO"]).encode()
    length = len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Length", str(length))])
    return [body]
"""


def test_static_files(express) -> None:
    """N5: aliases come first, the longest before the others, then files of the document root, then the application; `.ht*` are
    never served; names may hold what means something to a server."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    for name in (
        "docs/page.css",
        "docs/.htpasswd",
        "docs/sub/$x.txt",
        "docs/app/shadow",
        "one [1]/$a/file",
        "one [1]/.htx",
    ):
        x.write(name, name)
    x.write("single.txt", "single")
    x.start(
        "app.wsgi", "--document-root", "docs", "--url-alias", "/s p", "one [1]", "--url-alias", "/s p/deep", "docs/sub",
        "--url-alias", "/single", "single.txt", "--mount-point", "/app",
    )  # fmt: skip
    page = x.get("/page.css")
    assert page.text == "docs/page.css" and page.header("Content-Type").startswith("text/css")
    assert x.get("/sub/$x.txt").text == "docs/sub/$x.txt"
    assert x.get("/s%20p/$a/file").text == "one [1]/$a/file"
    assert x.get("/s%20p/deep/$x.txt").text == "docs/sub/$x.txt"
    assert x.get("/single").text == "single"
    assert x.get("/s%20p/.htx").status == 403
    assert x.get("/.htpasswd").status in (403, 404)
    assert x.get("/none").status == 404 and x.get("/appendix").status == 404
    assert x.get("/app/shadow").text == "docs/app/shadow"
    assert x.get("/app/x").text == "hello /x" and x.get("/app").text == "hello "
    moved = x.get("/s%20p")
    assert moved.status == 301 and moved.header("Location").endswith("/s%20p/")
    assert x.get("/s%20p/").status in (403, 404), "no lists of directories"


def test_hidden_files_go_to_the_application(express) -> None:
    """N5: `.ht*` in a document root below an application at / are not served either."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.write("docs/.htpasswd", "secret")
    x.write("docs/plain", "plain")
    x.start("app.wsgi", "--document-root", "docs")
    assert x.get("/plain").text == "plain" and x.get("/").text == "hello /"
    assert "secret" not in x.get("/.htpasswd").text


def test_bodies(express) -> None:
    """N5: a body that does not fit into memory arrives whole, below the limit and not above it."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", "--limit-request-body", "3000000")
    assert x.get(method="POST", body=b"x" * 3_000_000).header("X-Length") == "3000000"
    assert x.get(method="POST", body=b"x" * 3_000_001).status == 413


def test_rotated_logs(express) -> None:
    """N5: after SIGUSR1 server, supervisor and workers write to new log files; nothing more comes to the old ones."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", "--access-log")
    wait_until(lambda: "Serving" in x.output(), 20, "it has been announced")
    assert x.get("/before").status == 200
    logs = {name: x.root / name for name in ("error_log", "access_log")}
    for name, path in logs.items():
        wait_until(lambda p=path: "/before" in p.read_text(), 10, f"{name} has the first request")
        path.rename(x.root / f"{name}.1")
    assert x.process
    x.process.send_signal(signal.SIGUSR1)

    def arrived() -> bool:
        x.get("/after")
        return all(p.exists() and "/after" in p.read_text() for p in logs.values())

    wait_until(arrived, 20, "new files have what comes after")
    command = [str(product.binary()), "ctl", "stacks", "--server-root", str(x.root)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    wait_until(lambda: "stacks" in logs["error_log"].read_text().lower(), 10, "the supervisor's lines too")
    for name in logs:
        assert "ctl" not in (x.root / f"{name}.1").read_text()


@pytest.mark.parametrize("to", ["files", "terminal"])
def test_output_of_the_application(express, to: str) -> None:
    """N5: what an application prints during a request reaches the log at the default level, which is warn for the server."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", *(["--log-to-terminal"] if to == "terminal" else []))
    assert x.get("/printed").status == 200
    text = lambda: x.output() if to == "terminal" else x.error_log()
    wait_until(lambda: "asked for /printed" in text(), 10, "what it prints is there")
    if to == "terminal":
        assert x.process
        x.process.send_signal(signal.SIGUSR1)
        wait_until(
            lambda: x.get("/again").status == 200 and "asked for /again" in text(), 20, "also after a new opening"
        )
        assert "emerg" not in text() and "failed" not in text(), text()


@pytest.mark.parametrize("seconds", ["1", "60"])
def test_drain(express, seconds: str) -> None:
    """N5: SIGTERM lets a running request finish; one that takes too long does not hold the end up."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", "--shutdown-timeout", "1")
    answers: list[http.Response | Exception] = []

    def ask() -> None:
        try:
            answers.append(x.get(f"/slow?{seconds}", timeout=50))
        except (OSError, AssertionError) as e:
            answers.append(e)

    client = threading.Thread(target=ask)
    client.start()
    wait_until(lambda: "slow request begun" in x.error_log(), 20, "the request runs")
    began = time.monotonic()
    assert x.stop(signal.SIGTERM) == 0
    client.join(20)
    assert time.monotonic() - began < 20
    whole = [a for a in answers if isinstance(a, http.Response) and a.status == 200 and a.complete]
    assert len(whole) == (1 if seconds == "1" else 0), answers


def test_timeouts(express) -> None:
    """N5: --socket-timeout bounds the silence of an application on either server; request-timeout is not needed for it."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", "--socket-timeout", "1", "--response-socket-timeout", "5")
    assert x.get("/slow?0.2").status == 200
    assert x.get("/slow?4", timeout=20).status == 504


def test_reload_loses_nothing(express) -> None:
    """N5: SIGHUP under load: new code, and no request is lost."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.start("app.wsgi", "--processes", "2")
    wait_until(lambda: "Serving" in x.output(), 20, "it has been announced")
    lost: list[object] = []
    over = threading.Event()

    def client() -> None:
        while not over.is_set():
            try:
                status = x.get().status
                if status != 200:
                    lost.append(status)
            except OSError as e:
                lost.append(e)

    clients = [threading.Thread(target=client) for _ in range(3)]
    for c in clients:
        c.start()
    try:
        for n in range(2):
            x.write("app.wsgi", HELLO.replace("hello", f"version {n}"))
            assert x.process
            x.process.send_signal(signal.SIGHUP)
            wait_until(lambda n=n: x.get().text.startswith(f"version {n}"), 20, "the new code answers")
    finally:
        over.set()
        for c in clients:
            c.join(20)
    assert not lost, lost


def test_control_script(express) -> None:
    """N5: the script of --setup-only starts, reloads and ends the server."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    code, text = x.fail("app.wsgi", "--setup-only")
    assert code == 0, text
    script = x.root / x.words.control

    def run(word: str) -> None:
        done = subprocess.run([str(script), word], cwd="/", env=x.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{word}: {done.stdout}{done.stderr}"

    def answers(text: str) -> bool:
        try:
            return x.get("/a").text == text
        except OSError:
            return False

    run("configtest")
    run("start")
    try:
        wait_until(lambda: answers("hello /a"), 30, "it serves")
        x.write("app.wsgi", HELLO.replace("hello", "changed"))
        run("graceful")
        wait_until(lambda: answers("changed /a"), 30, "the new code answers")
    finally:
        x._seen.update(x.processes())
        run("graceful-stop")
    wait_until(lambda: not x.leftovers(), 30, "everything has ended")


def test_options_of_the_other_server_are_refused(express) -> None:
    """N5: an option without meaning for the chosen server ends with status 2 and the reason; without --server it chooses."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    options = {"apache": [("--nginx-executable", "/usr/sbin/nginx")],
               "nginx": [("--httpd-executable", "/usr/sbin/apache2"), ("--modules-directory", "/usr/lib")]}  # fmt: skip
    for option, value in options[x.server]:
        code, text = x.fail("app.wsgi", option, value)
        assert code == 2 and "MWR0643" in text and option in text and f"--server {x.server}" in text, text
    y: Express = express(
        env={"MOD_WSGI_RS_" + options[x.server][0][0][2:].upper().replace("-", "_"): options[x.server][0][1]}
    )
    y.write("app.wsgi", HELLO)
    code, text = y.fail("app.wsgi")
    assert code == 2 and "MWR0643" in text, "also by its variable"


def test_auto(express, web_server: str) -> None:
    """N5: --server auto takes the server that an option names, else Apache, and says which."""
    x: Express = express(server=None)
    x.write("app.wsgi", HELLO)
    name = {"apache": "Apache", "nginx": "nginx"}[web_server]
    x.start("app.wsgi", *(["--nginx-executable", product.nginx()] if web_server == "nginx" else []))
    wait_until(lambda: f"\n{name} " in x.output(), 20, "it says which")
    assert x.get().header("Server").startswith(name)


def beside(x: Express, *left_out: str) -> pathlib.Path:
    """A copy of the program with its modules and the worker, without some of them."""
    place = x.prefix / "lib"
    place.mkdir(mode=0o755)
    for file in (product.binary(), product.module(), product.nginx_module()):
        if file.name not in left_out:
            shutil.copy2(file, place / file.name)
    shutil.copytree(product.binary().parent / "worker", place / "worker", symlinks=False)
    return place


@pytest.mark.parametrize("web_server", ["nginx"], indirect=True)
def test_modules(express, monkeypatch) -> None:
    """N5: without Apache's module auto takes nginx; without nginx's it says how to get one; with one of another nginx, what to
    do."""
    x: Express = express(server=None)
    x.write("app.wsgi", HELLO)
    place = beside(x, product.module().name)
    monkeypatch.setattr(product, "binary", lambda: place / "mod-wsgi-rs")
    x.start("app.wsgi")
    wait_until(lambda: "\nnginx " in x.output(), 20, "nginx was taken")
    x.stop()
    module = place / product.nginx_module().name
    text = module.read_bytes()
    number = int.from_bytes(bytes(version_number()), "little")
    changed = text.replace(number.to_bytes(8, "little"), (number + 1).to_bytes(8, "little"))
    assert changed != text
    module.write_bytes(changed)
    code, said = x.fail("app.wsgi")
    assert code == 1 and f"version {number + 1} instead of {number}" in said and "nginx-dev" in said, said
    module.unlink()
    code, said = x.fail("app.wsgi", "--server", "nginx")
    assert code == 1 and "MWR0607" in said and "ngx_http_wsgi_rs_module.so" in said and "make build" in said, said
    code, said = x.fail("app.wsgi")
    assert code == 1 and "no web server can be run" in said, said


def version_number() -> bytes:
    """nginx's version as it stands in a module, 1022001 for 1.22.1."""
    from harness.nginx import version

    a, b, c = version()
    return (a * 1_000_000 + b * 1000 + c).to_bytes(8, "little")


@pytest.mark.root
@pytest.mark.parametrize("web_server", ["nginx"], indirect=True)
def test_user_without_a_name(express) -> None:
    """N5: nginx knows users by name only; a number without an entry is refused with the reason."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    code, text = x.fail("app.wsgi", "--user", "54321", "--group", "54321")
    assert code == 2 and "54321" in text and "nginx" in text and "names only" in text, text


@pytest.mark.parametrize("web_server", ["nginx"], indirect=True)
def test_failed_start_leaves_no_spool(express) -> None:
    """N5: nothing stays of a start that failed, also not in /var/tmp; what nginx says is shown."""
    x: Express = express()
    x.write("app.wsgi", HELLO)
    x.write("bad.conf", "no_such_directive on;\n")
    before = set(os.listdir("/var/tmp"))
    code, text = x.fail("app.wsgi", "--include-file", "bad.conf")
    assert code == 1 and "no_such_directive" in text and "MWR0615" in text, text
    assert not x.root.exists() and not [n for n in set(os.listdir("/var/tmp")) - before if n.startswith("mod-wsgi-rs-")]
