"""Signals to the launcher (L8) and what a service manager hears from it (L12)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess

import pytest

from harness import product
from harness.express import Express
from harness.wait import Timeout, wait_until

pytestmark = pytest.mark.ours
APP = """
import os
def application(environ, start_response):
    body = ("VERSION %d" % os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def pools(x: Express) -> list[dict]:
    command = [str(product.binary()), "ctl", "status", "--json", "--server-root", str(x.root)]
    done = subprocess.run(command, capture_output=True, text=True)
    # Apache listens a moment before it starts the supervisor.
    return json.loads(done.stdout)["pools"] if done.returncode == 0 else []


def ready(x: Express) -> int:
    return sum(w["state"] == "ready" for p in pools(x) for w in p["workers"])


def test_signals_as_gunicorn_has_them(express) -> None:
    """L8: TTIN and TTOU add and remove a worker, USR2 writes stacks, HUP loads new code, a resize does nothing, TERM ends."""
    x: Express = express()
    x.write("app.wsgi", APP)
    x.start("app.wsgi")
    wait_until(lambda: ready(x) == 1)
    assert x.process
    x.process.send_signal(signal.SIGTTIN)
    wait_until(lambda: ready(x) == 2)
    x.process.send_signal(signal.SIGTTOU)
    wait_until(lambda: ready(x) == 1)
    x.process.send_signal(signal.SIGTTOU)
    x.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: "most recent call first" in x.output() or "no Python frame" in x.output())
    assert "most recent call first" in x.error_log()
    assert ready(x) == 1, "never fewer than one"
    x.write("app.wsgi", APP.replace("VERSION", "new"))
    before = x.get().text
    x.process.send_signal(signal.SIGHUP)
    wait_until(lambda: x.get().text.startswith("new") and x.get().text != before)
    x.process.send_signal(signal.SIGWINCH)
    assert x.get().status == 200
    assert x.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("abstract", [False, True])
def test_service_manager(express, abstract: bool) -> None:
    """L12: READY when the application answers, RELOADING and READY around HUP, WATCHDOG while the supervisor answers,
    STOPPING; the web server and the application hear nothing of it."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    name = f"@mwr-{os.getpid()}" if abstract else f"/tmp/mwr-notify-{os.getpid()}"
    manager.bind("\0" + name[1:] if abstract else name)
    manager.setblocking(False)
    heard: list[str] = []

    def hears(text: str) -> bool:
        while True:
            try:
                heard.append(manager.recv(4096).decode())
            except BlockingIOError:
                return any(text in h for h in heard)

    x = express(env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "600000"})
    try:
        x.write("app.wsgi", APP.replace('"VERSION %d" % os.getpid()', '"%s" % sorted(k for k in os.environ)'))
        x.start("app.wsgi")
        wait_until(lambda: hears("READY=1"), 20)
        wait_until(lambda: hears("WATCHDOG=1"), 20)
        assert "NOTIFY" not in x.get().text and "WATCHDOG" not in x.get().text
        (supervisor,) = [p for p in x.processes() if "supervise" in p.cmdline]
        os.kill(supervisor.pid, signal.SIGSTOP)
        try:

            def quiet() -> bool:
                heard.clear()
                with contextlib.suppress(Timeout):
                    return not wait_until(lambda: hears("WATCHDOG=1"), 1)
                return True

            wait_until(quiet, 20, "a second without a word")
        finally:
            os.kill(supervisor.pid, signal.SIGCONT)
        wait_until(lambda: hears("WATCHDOG=1"), 20)
        heard.clear()
        assert x.process
        x.process.send_signal(signal.SIGHUP)
        wait_until(lambda: hears("RELOADING=1\nMONOTONIC_USEC="), 20)
        wait_until(lambda: hears("READY=1"), 20)
        assert x.stop(signal.SIGTERM) == 0
        assert hears("STOPPING=1")
    finally:
        manager.close()
        if not abstract:
            os.unlink(name)


def test_unit(express) -> None:
    """L12: --systemd-unit prints a unit that runs this very command line, and starts nothing."""
    x: Express = express()
    x.write("app.wsgi", APP)
    command = [
        str(product.binary()),
        "express",
        "app.wsgi",
        "--port",
        "8123",
        "--setenv",
        "A",
        "50% off",
        "--systemd-unit",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=x.work, env=x.env, timeout=60)
    assert done.returncode == 0, done.stderr
    unit = done.stdout
    assert f'ExecStart={product.binary()} express app.wsgi --port 8123 --setenv A "50%% off" --server-root ' in unit
    for line in (
        "Type=notify",
        "OOMPolicy=continue",
        "KillMode=mixed",
        "ProtectSystem=strict",
        f"WorkingDirectory={x.work}",
    ):
        assert line in unit.splitlines(), line
    assert not x.processes()
