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
WAITS = """
import os, time
def wait(here, until):
    open(here, "w").close()
    while not os.path.exists(until):
        time.sleep(0.01)
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
    x.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: "most recent call first" in x.output() or "no Python frame" in x.output())
    assert "most recent call first" in x.error_log()
    x.write("app.wsgi", APP.replace("VERSION", "new"))
    before = x.get().text
    x.process.send_signal(signal.SIGHUP)
    wait_until(lambda: x.get().text.startswith("new") and x.get().text != before)
    x.process.send_signal(signal.SIGWINCH)
    assert x.get().status == 200
    assert x.stop(signal.SIGTERM) == 0


def test_never_fewer_than_one(express) -> None:
    """L8: TTOU takes workers away down to one; that the configuration has more does not bring them back."""
    x: Express = express()
    x.write("app.wsgi", APP)
    x.start("app.wsgi", "--processes", "2")
    wait_until(lambda: ready(x) == 2)
    assert x.process
    for n in range(1, 4):
        x.process.send_signal(signal.SIGTTOU)
        # An order is carried out before anything else is answered.
        wait_until(lambda n=n: x.error_log().count("has ordered: ScaleBy") == n)
        (pool,) = pools(x)
        assert (pool["target"], pool["scaled"]) == (1, 1)
    wait_until(lambda: ready(x) == 1)
    x.process.send_signal(signal.SIGTTIN)
    wait_until(lambda: ready(x) == 2)


class Manager:
    """Listens as a service manager does."""

    def __init__(self, abstract: bool = True):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.name = f"@mwr-{os.getpid()}" if abstract else f"/tmp/mwr-notify-{os.getpid()}"
        self.socket.bind("\0" + self.name[1:] if abstract else self.name)
        self.socket.setblocking(False)
        self.heard: list[str] = []

    def hears(self, text: str) -> bool:
        """Whether it has been told so."""
        while True:
            try:
                self.heard.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return any(text in h for h in self.heard)

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        if not self.name.startswith("@"):
            os.unlink(self.name)


def test_not_ready_before_the_application_answers(express) -> None:
    """L12: as long as the application is being loaded, or answers nothing yet, the service is not ready, though the server
    accepts connections."""
    with Manager() as manager:
        x = express(env={"NOTIFY_SOCKET": manager.name})
        loading, loaded, asked, go = (str(x.work / n) for n in ("loading", "loaded", "asked", "go"))
        text = WAITS + APP.replace("    body =", f"    wait({asked!r}, {go!r})\n    body =")
        # The launcher loads it too, to see whether it can be, before it starts the server.
        checked = str(x.work / "checked")
        text += (
            f"wait({loading!r}, {loaded!r}) if os.path.exists({checked!r}) else wait({checked!r}, {str(x.work)!r})\n"
        )
        x.work.chmod(0o777)
        x.write("app.wsgi", text)
        x.start("app.wsgi")
        for place, then in ((loading, loaded), (asked, go)):
            wait_until(lambda place=place: os.path.exists(place), 20)
            with pytest.raises(Timeout):
                wait_until(lambda: manager.hears("READY=1"), 1)
            open(then, "w").close()
        wait_until(lambda: manager.hears("READY=1"), 20)
        assert x.get().status == 200
        assert x.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("abstract", [False, True])
def test_service_manager(express, abstract: bool) -> None:
    """L12: READY when the application answers, RELOADING and READY around HUP, WATCHDOG while the supervisor answers,
    STOPPING; the web server and the application hear nothing of it."""
    with Manager(abstract) as manager:
        x = express(env={"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "600000"})
        x.write("app.wsgi", APP.replace('"VERSION %d" % os.getpid()', '"%s" % sorted(k for k in os.environ)'))
        x.start("app.wsgi")
        wait_until(lambda: manager.hears("READY=1"), 20)
        wait_until(lambda: manager.hears("WATCHDOG=1"), 20)
        assert "NOTIFY" not in x.get().text and "WATCHDOG" not in x.get().text
        (supervisor,) = [p for p in x.processes() if "supervise" in p.cmdline]
        os.kill(supervisor.pid, signal.SIGSTOP)
        try:

            def quiet() -> bool:
                manager.heard.clear()
                with contextlib.suppress(Timeout):
                    return not wait_until(lambda: manager.hears("WATCHDOG=1"), 1)
                return True

            wait_until(quiet, 20, "a second without a word")
        finally:
            os.kill(supervisor.pid, signal.SIGCONT)
        wait_until(lambda: manager.hears("WATCHDOG=1"), 20)
        manager.heard.clear()
        assert x.process
        x.process.send_signal(signal.SIGHUP)
        wait_until(lambda: manager.hears("RELOADING=1\nMONOTONIC_USEC="), 20)
        wait_until(lambda: manager.hears("READY=1"), 20)
        assert x.stop(signal.SIGTERM) == 0
        assert manager.hears("STOPPING=1")


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
