"""The servers of the fault suite, behind one face: the same application, two processes of five threads, on ours and on the
peers. A new server is one more entry of OURS or PEERS."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

from . import counted, http, procs, product
from .kinds import KINDS, ROOMY, on
from .plan import Plan
from .ports import Port
from .wait import wait_until

PROCESSES, THREADS = 2, 5
#: the same site on every server of ours, and on mod_wsgi
SITE = Plan(f"processes={PROCESSES} threads={THREADS} display-name=wsgi-daemon", "faults.wsgi")


class Front:
    """One running server. Tests use `port`, `workers`, `reload`, `ids`; what only ours has is in `server`."""

    name = ""
    port = 0
    scratch = pathlib.Path()
    script = pathlib.Path()

    @property
    def ids(self) -> pathlib.Path:
        """What the application has begun."""
        return self.scratch / "ids"

    def workers(self) -> list[int]:
        """Process ids of the workers that serve."""
        raise NotImplementedError

    def reload(self) -> None:
        """A graceful reload; returns when it has been asked for and the server accepts."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends it, whatever state it is in."""
        raise NotImplementedError

    def get(self, target: str = "/", **kw: object) -> http.Response:
        """One request on a connection of its own."""
        return http.fetch(self.port, target, **kw)  # type: ignore[arg-type]

    def settled(self, deadline: float = 30.0) -> list[int]:
        """Waits until all workers serve."""
        return wait_until(lambda: len(w := self.workers()) == PROCESSES and w, deadline, f"{PROCESSES} workers")

    def load(self, prefix: str, clients: int = 8, pause: float = 0.005) -> counted.Counted:
        """Clients that count."""
        return counted.Counted(self.port, prefix, clients, pause)


class Hosted(Front):
    """A module in a web server: ours on every kind of server, or mod_wsgi on Apache (`module`). `options` are more of the
    group's, `plan` more of the site."""

    def __init__(self, kind: str, module: pathlib.Path | None = None, options: str = "", **kw: Any):
        self.ours = module is None
        changes = kw.pop("plan", {})
        self.plan = SITE.replace(options=f"{SITE.options} {options}", **changes)
        self.server = on(kind, self.plan, kw.pop("room", ROOMY), **kw, **({} if self.ours else {"module": module}))
        self.name = kind if self.ours else f"mod_wsgi {kind}"
        self.scratch, self.script = self.server.scratch, self.server.apps / "faults.wsgi"
        self.server.start()
        self.port = self.server.port
        self.settled()

    def change(self, options: str) -> None:
        """Other options of the group from the next reload on."""
        self.plan = self.plan.replace(options=options)
        self.server.plan(self.plan)
        self.server.write_config()

    def workers(self) -> list[int]:
        if self.ours:
            return sorted(self.server.ready())
        return sorted(p.pid for p in self.server.processes() if any("wsgi-daemon" in a for a in p.cmdline))

    def reload(self) -> None:
        self.server.graceful()

    def claimed(self) -> list[str]:
        """Requests that had begun in workers that died, as their journals say."""
        lines = "".join(self.server.log.find("MWR0306.*; under way: "))
        return re.findall(r"[?&]id=([\w-]+)", lines)

    def stop(self) -> None:
        self.server.stop()


class Gunicorn(Front):
    """gunicorn with threads."""

    name = "gunicorn"

    def __init__(self) -> None:
        self.prefix = pathlib.Path(tempfile.mkdtemp(prefix="mwr-guni-"))
        (self.prefix / "apps").mkdir()
        self.scratch = self.prefix / "scratch"
        self.scratch.mkdir()
        self.script = self.prefix / "apps" / "faultsapp.py"
        shutil.copy(product.TESTS / "apps" / "faults.wsgi", self.script)
        self._claim = Port()
        self.port = self._claim.number
        command = [
            str(peers() / "bin" / "gunicorn"), "-w", str(PROCESSES), "--threads", str(THREADS), "--keep-alive", "30",
            "-b", f"127.0.0.1:{self.port}", "--chdir", str(self.script.parent), "faultsapp:application",
        ]  # fmt: skip
        with open(self.prefix / "log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_until(self._up, 30, "gunicorn serves")
            self.settled()
        except BaseException:
            self.stop()
            raise

    def _up(self) -> bool:
        try:
            return self.get("/exact?id=first&size=5").status == 200
        except OSError:
            return False

    def workers(self) -> list[int]:
        return sorted(p.pid for p in procs.descendants([self.process.pid]) if p.ppid == self.process.pid)

    def reload(self) -> None:
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        try:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        finally:
            procs.kill_tree(self.process, lambda: procs.belonging(str(self.prefix)))
            self._claim.release()
            shutil.rmtree(self.prefix, ignore_errors=True)


def peers() -> pathlib.Path:
    """The virtual environment with the peers: MWR_PEERS, or where the comparison script puts it."""
    return pathlib.Path(os.environ.get("MWR_PEERS", "/var/tmp/wsgi-peers"))


def mod_wsgi() -> pathlib.Path:
    """PyPI's mod_wsgi."""
    found = sorted(peers().glob("lib/python3*/site-packages/mod_wsgi/server/mod_wsgi*.so"))
    if not found:
        raise product.Missing(f"no mod_wsgi below {peers()}: name a virtual environment with MWR_PEERS")
    return found[-1]


#: ours
OURS: dict[str, Callable[..., Front]] = {kind: functools.partial(Hosted, kind) for kind in KINDS}
#: others, for the table
PEERS: dict[str, Callable[..., Front]] = {
    "mod_wsgi": lambda **kw: Hosted("event", module=mod_wsgi(), **kw),
    "gunicorn": lambda **kw: Gunicorn(),
}
