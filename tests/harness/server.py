"""A private web server in a directory of its own below /tmp, whichever it is: start, reloads, stop, and the proof that
nothing is left afterwards. apache.py and nginx.py say what is each one's own."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from . import http, procs, product
from .log import Oracle
from .plan import Plan
from .ports import Port
from .wait import Timeout, wait_until

#: instances that are running or have stopped without their log having been judged
LIVE: list[Server] = []


class StartFailed(AssertionError):
    """The server ended instead of serving."""


class Server:
    """One server. {prefix}, {apps}, {port}, {run} and {scratch} in configurations and scripts are replaced. Use as a
    context manager, or call `stop` always."""

    #: what people call it, and its configuration file
    NAME = CONFIG = ""
    #: what its log says once it serves, at the start and after each reload
    SERVES = ""
    #: the signal that has it finish what runs and then end
    GRACEFUL_STOP: signal.Signals
    #: the signal for a reload that finishes what runs
    RELOAD: signal.Signals
    #: its log's lines about a process of its own that was killed
    KILLED = ""
    #: how a record of an application's output begins
    RECORD = ""

    def __init__(
        self,
        config: str = "",
        load: bool = True,
        env: dict[str, str] | None = None,
        args: Iterable[str] = (),
        tls: bool = False,
        wrap: Iterable[str] = (),
    ):
        self.prefix = pathlib.Path(tempfile.mkdtemp(prefix="mwr-"))
        self.prefix.chmod(0o755)
        self.apps = self.prefix / "apps"
        self.run = self.prefix / "run"
        self.logs = self.prefix / "logs"
        #: where applications may write
        self.scratch = self.prefix / "scratch"
        self.error_log = self.logs / "error.log"
        self.stderr_log = self.logs / "stderr.log"
        for d in (self.run, self.logs, self.prefix / "htdocs", self.scratch):
            d.mkdir()
        self.scratch.chmod(0o1777)
        shutil.copytree(product.TESTS / "apps", self.apps, ignore=shutil.ignore_patterns("__pycache__"))
        self.config, self.args, self.tls = config, list(args), tls
        #: whether the module is loaded
        self.load = load
        #: a command that runs the server in surroundings of its own; it must exec
        self.wrap = list(wrap)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "APACHE_"))}
        self.env |= {"MWR_TEST_PREFIX": str(self.prefix)} | (env or {})
        self._claims = [Port()]
        if tls:
            self._claims.append(Port())
        self.process: subprocess.Popen[bytes] | None = None
        self.log = Oracle(self.error_log, self.stderr_log)
        self._seen: set[procs.Process] = set()
        self.keep = False
        #: nobody will start it again: its directory goes once its log has been judged
        self.finished = False
        LIVE.append(self)

    # -- what is each server's own

    def text(self) -> str:
        """The whole configuration."""
        raise NotImplementedError

    def plan(self, plan: Plan) -> None:
        """Takes the site that is described for the next start or reload."""
        raise NotImplementedError

    def command(self, *args: str) -> list[str]:
        """How it is run, with more arguments."""
        raise NotImplementedError

    def server_processes(self) -> list[procs.Process]:
        """Its own processes that serve requests."""
        raise NotImplementedError

    def tied(self, port: int) -> str:
        """What the records of a request say of its client, which has that port."""
        raise NotImplementedError

    def reopen(self) -> None:
        """Has the error log opened anew after it has been moved; returns when that is done."""
        raise NotImplementedError

    def graceful(self, deadline: float = 30.0) -> None:
        """A reload that finishes what runs; returns when the new configuration is in force."""
        raise NotImplementedError

    # -- configuration

    @property
    def port(self) -> int:
        return self._claims[0].number

    @property
    def tls_port(self) -> int:
        return self._claims[1].number

    def expand(self, text: str) -> str:
        """Replaces the places that a configuration or script may name."""
        for key, value in (
            ("prefix", self.prefix),
            ("apps", self.apps),
            ("port", self.port),
            ("run", self.run),
            ("scratch", self.scratch),
        ):
            text = text.replace("{" + key + "}", str(value))
        return text

    def write(self, name: str, text: str, mode: int = 0o644, expand: bool = True) -> pathlib.Path:
        """Writes a file below apps/, whole at once (rename), so that a reader sees the old or the new one."""
        path = self.apps / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(self.expand(text) if expand else text)
        temporary.chmod(mode)
        temporary.rename(path)
        return path

    def certificate(self) -> pathlib.Path:
        """Key and certificate of this server, in one file."""
        path = self.prefix / "server.pem"
        if not path.exists():
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                 "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", str(path), "-out", str(path) + ".crt"],
                check=True, capture_output=True,
            )  # fmt: skip
            path.write_text(path.read_text() + pathlib.Path(str(path) + ".crt").read_text())
        return path

    def write_config(self, config: str | None = None) -> pathlib.Path:
        """Writes the configuration, with another `config` when given."""
        if config is not None:
            self.config = config
        path = self.prefix / self.CONFIG
        path.write_text(self.text())
        return path

    def configtest(self, config: str | None = None) -> tuple[int, str]:
        """The server's own check (`-t`): exit status, and what it said on its streams and in the error log."""
        self.write_config(config)
        done = subprocess.run(
            self.command("-t", *self.args), capture_output=True, text=True, env=self.env, timeout=60, errors="replace"
        )
        logged = self.error_log.read_text(errors="replace") if self.error_log.exists() else ""
        return done.returncode, done.stdout + done.stderr + logged

    # -- life

    def _spawn(self) -> None:
        self.write_config()
        with open(self.stderr_log, "ab") as err:
            self.process = subprocess.Popen(
                [self.expand(w) for w in self.wrap] + self.command(*self.args),
                stdin=subprocess.DEVNULL,
                stdout=err,
                stderr=err,
                env=self.env,
                cwd=self.prefix,
                start_new_session=True,
            )

    def start(self, deadline: float = 30.0) -> Server:
        """Starts in the foreground and waits until the port accepts; a port taken meanwhile is replaced."""
        for attempt in range(5):
            self._spawn()
            try:
                wait_until(self._up, deadline, f"{self.NAME} serves")
                break
            except StartFailed:
                if attempt < 4 and "Address already in use" in self._tail():
                    claims, self._claims = self._claims, [Port() for _ in self._claims]
                    for claim in claims:
                        claim.release()
                    continue
                raise
            except Timeout as e:
                self.kill_all()
                raise StartFailed(f"{e}\n{self._tail()}") from None
        self.snapshot()
        return self

    def start_expecting_failure(self, deadline: float = 30.0) -> tuple[int, str]:
        """Starts a server that must refuse: its exit status and messages."""
        self._spawn()
        assert self.process
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.NAME} started although it must not") from None
        return code, self._tail(1 << 20)

    def _ended(self) -> bool:
        """Whether it runs no more."""
        assert self.process
        return self.process.poll() is not None

    def _starts(self) -> int:
        """How often it has said that it serves."""
        self.log.poll()
        return sum(self.SERVES in line.text for line in self.log.all)

    def _up(self) -> bool:
        if self._ended():
            assert self.process
            raise StartFailed(f"{self.NAME} ended with {self.process.returncode}:\n{self._tail()}")
        # only this server's own start counts: the port could be somebody else's
        if self._starts() == 0:
            return False
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False

    def _tail(self, size: int = 6000) -> str:
        text = ""
        for path in (self.stderr_log, self.error_log):
            if path.exists():
                text += f"--- {path.name}\n" + path.read_text(errors="backslashreplace")[-size:]
        return text

    def ctl(self, *args: str, ok: bool = True) -> str:
        """`mod-wsgi-rs ctl` for this server: what it prints."""
        directory = next(self.run.glob("**/ctl.sock")).parent
        command = [str(product.binary()), "ctl", *args, "--run-directory", str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) == ok, f"{command}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout if ok else done.stderr

    def pools(self) -> list[dict[str, Any]]:
        """The pools of workers as `ctl status` has them."""
        return json.loads(self.ctl("status", "--json"))["pools"]

    def workers(self, group: str = "g") -> list[dict[str, Any]]:
        """The workers of a group's %{GLOBAL} pools."""
        return [w for p in self.pools() if p["group"] == group and not p["application"] for w in p["workers"]]

    def ready(self, group: str = "g") -> set[int]:
        """Process ids of its ready workers."""
        return {w["pid"] for w in self.workers(group) if w["state"] == "ready"}

    @property
    def pid(self) -> int:
        """The process that starts the others."""
        assert self.process
        return self.process.pid

    def start_anew(self, sig: int, deadline: float = 30.0) -> None:
        """Sends a signal that makes it start anew; returns when it has."""
        self.snapshot()
        before = self._starts()
        os.kill(self.pid, sig)

        def again() -> bool:
            if self._ended():
                assert self.process
                raise StartFailed(f"{self.NAME} ended with {self.process.returncode} in a restart:\n{self._tail()}")
            return self._starts() > before

        wait_until(again, deadline, f"{self.NAME} restarted")
        self.snapshot()

    def snapshot(self) -> None:
        """Remembers the processes that exist now, so that `stop` can prove that they have gone."""
        if self.process:
            self._seen.update(self.processes())

    def processes(self) -> list[procs.Process]:
        """The server, its children, keeper, supervisor and workers that run now."""
        return procs.belonging(str(self.prefix))

    def helpers(self, word: str) -> list[procs.Process]:
        """Processes with this word as an argument, such as `keeper` or `supervise`."""
        return [p for p in self.processes() if word in p.cmdline]

    def children(self) -> list[procs.Process]:
        """The server's direct children."""
        return [p for p in procs.descendants([self.pid]) if p.ppid == self.pid]

    def stop(self, sig: int = signal.SIGTERM, deadline: float = 15.0) -> None:
        """Stops the server; a process, listening socket or other socket file that is left is an AssertionError."""
        if self.process is None:
            return
        self.snapshot()
        try:
            if not self._ended():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, sig)
                try:
                    wait_until(self._ended, deadline)
                except Timeout:
                    raise AssertionError(f"{self.NAME} did not stop within {deadline} s:\n{self._tail()}") from None
            try:
                wait_until(lambda: not self.leftovers(), deadline, interval=0.05)
            except Timeout:
                left = "\n".join(map(str, self.leftovers()))
                raise AssertionError(f"left {deadline} s after the stop:\n{left}") from None
            if self.is_ours():
                sockets = self.sockets()
                assert not sockets, f"socket files left after the stop: {sockets}"
        finally:
            self.kill_all()
            self.process = None

    def is_ours(self) -> bool:
        """Whether the module under test is this project's."""
        return product.is_ours()

    def leftovers(self) -> list[procs.Process]:
        """Processes of this server that still run."""
        return sorted({p for p in self._seen if p.alive()} | set(self.processes()), key=lambda p: p.pid)

    def sockets(self) -> list[str]:
        """Unix sockets below the prefix."""
        found = []
        for where, _, names in os.walk(self.prefix):
            for name in names:
                path = os.path.join(where, name)
                with contextlib.suppress(FileNotFoundError):
                    if stat.S_ISSOCK(os.lstat(path).st_mode):
                        found.append(path)
        return found

    def kill_all(self) -> None:
        """Ends by SIGKILL whatever of this server still runs: itself first, so that nothing is started anew."""
        procs.kill_tree(self.process, self.leftovers)

    def destroy(self) -> None:
        """Removes the prefix (unless kept for inspection) and gives the ports back."""
        self.log.close()
        for claim in self._claims:
            claim.release()
        if not self.keep:
            shutil.rmtree(self.prefix, ignore_errors=True)
        if self in LIVE:
            LIVE.remove(self)

    def __enter__(self) -> Server:
        if self.process is None:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- use

    def expect_log(self, pattern: str) -> None:
        """Declares a log line at warning or above: it must come, and is then no fault."""
        self.log.expect(pattern)

    def allow_log(self, pattern: str) -> None:
        """Declares log lines that may come."""
        self.log.allow(pattern)

    def get(self, target: str = "/", **kw: object) -> http.Response:
        """One request on a connection of its own."""
        return http.fetch(self.port, target, **kw)  # type: ignore[arg-type]

    def connect(self, **kw: object) -> http.Connection:
        """A keep-alive connection."""
        return http.Connection(self.port, **kw)  # type: ignore[arg-type]


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """A server for several tests; its last log lines are judged when it has stopped."""
    try:
        server.start()
        yield server
        server.log.begin()
        server.stop()
        complaints = server.log.verdict()
        assert not complaints, "\n".join(complaints)
    finally:
        server.kill_all()
        server.destroy()
