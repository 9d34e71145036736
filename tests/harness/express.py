"""Runs `mod-wsgi-rs express` as people do, and proves that nothing is left behind."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from . import http, procs, product
from .ports import Port
from .wait import Timeout, wait_until

#: an account without privileges that every Debian has
STRANGER = "games"


@dataclasses.dataclass(frozen=True)
class Words:
    """What a server calls the things that tests look at."""

    configuration: str
    control: str
    #: the option that names its program, and how it calls itself
    executable: str
    name: str
    #: further configuration that answers /extra with 410
    gone: str
    #: what writes an access log
    access_log: str

    def setenv(self, key: str, value: str) -> str:
        """How a variable of the environ stands in the configuration."""
        return f'SetEnv "{key}" "{value}"' if self.name == "Apache" else f'wsgi_param "{key}" "{value}";'

    def log_level(self, level: str) -> str:
        """How the level of the error log does."""
        return f"LogLevel {level}" if self.name == "Apache" else f" {level};"


SERVERS = {
    "apache": Words(
        "httpd.conf",
        "apachectl",
        "--httpd-executable",
        "Apache",
        "<Location /extra>\nRedirect 410 /extra\n</Location>\n",
        "CustomLog",
    ),
    "nginx": Words(
        "nginx.conf",
        "nginxctl",
        "--nginx-executable",
        "nginx",
        "location /extra { return 410; }\n",
        "access_log access_log combined;",
    ),
}


class Express:
    """One launcher in a working directory of its own below /tmp. `user` runs it without privileges (tests as root).
    `server`: what it gets as --server where the test names none; None leaves it out."""

    def __init__(self, user: str | None = None, env: dict[str, str] | None = None, server: str | None = "apache"):
        self.server = server
        self.words = SERVERS[server or "apache"]
        self.prefix = pathlib.Path(tempfile.mkdtemp(prefix="mwr-x-"))
        self.prefix.chmod(0o755)
        self.work = self.prefix / "work"
        self.work.mkdir()
        self.root = self.prefix / "root"
        self.user = user
        if user:
            entry = pwd.getpwnam(user)
            for d in (self.prefix, self.work):
                os.chown(d, entry.pw_uid, entry.pw_gid)
        self._claim = Port()
        self.port = self._claim.number
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "APACHE_"))}
        # the system's own python3 comes first: that of pyenv may be out of reach for the serving user
        self.env["PATH"] = "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin"
        self.env |= {"MWR_TEST_PREFIX": str(self.prefix), "HOME": str(self.prefix), "TMPDIR": str(self.prefix)} | (
            env or {}
        )
        self.process: subprocess.Popen[bytes] | None = None
        self._seen: set[procs.Process] = set()
        self._spool: pathlib.Path | None = None

    def write(self, name: str, text: str) -> pathlib.Path:
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def _popen(self, args: tuple[str, ...], root: bool) -> subprocess.Popen[bytes]:
        command = [str(product.binary()), "express", *args]
        if "--port" not in args:
            command += ["--port", str(self.port)]
        if root and "--server-root" not in args:
            command += ["--server-root", str(self.root)]
        if self.server and "--server" not in args:
            command += ["--server", self.server]
        who: dict[str, object] = {}
        if self.user:
            entry = pwd.getpwnam(self.user)
            who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        with open(self.prefix / "stdout", "ab") as out, open(self.prefix / "stderr", "ab") as err:
            return subprocess.Popen(
                command,
                cwd=self.work,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                **who,
            )  # type: ignore[call-overload]

    def output(self) -> str:
        """What it has said so far."""
        return "".join((self.prefix / n).read_text(errors="backslashreplace") for n in ("stdout", "stderr"))

    def start(self, *args: str, root: bool = True, deadline: float = 45.0) -> Express:
        """Starts and waits until it accepts and answers."""
        self.process = self._popen(args, root)
        end = time.monotonic() + deadline

        def up() -> bool:
            assert self.process
            if self.process.poll() is not None:
                raise AssertionError(
                    f"express ended with {self.process.returncode}:\n{self.output()}\n{self.error_log()}"
                )
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                return False
            return True

        try:
            wait_until(up, deadline, "express serves")
        except Timeout as e:
            self.kill_all()
            raise AssertionError(f"{e}\n{self.output()}\n{self.error_log()}") from None
        assert time.monotonic() < end + 5
        self._seen.update(self.processes())
        self._spool = self.spool()
        return self

    def fail(self, *args: str, root: bool = True, deadline: float = 60.0) -> tuple[int, str]:
        """Starts something that must refuse: exit status and output; nothing may be left of it."""
        self.process = self._popen(args, root)
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"express did not end:\n{self.output()}") from None
        finally:
            self._seen.update(self.processes())
        self._gone()
        self.process = None
        return code, self.output()

    def get(self, target: str = "/", **kw: object) -> http.Response:
        return http.fetch(self.port, target, **kw)  # type: ignore[arg-type]

    def config(self) -> str:
        """The generated configuration."""
        return (self.root / self.words.configuration).read_text()

    def spool(self) -> pathlib.Path | None:
        """The directory of the server's temporary files outside of its root, if it has one."""
        note = self.root / "spool.path"
        return pathlib.Path(note.read_text()) if note.exists() else None

    def error_log(self) -> str:
        return "".join(p.read_text(errors="backslashreplace") for p in self.prefix.glob("root/*error*log*"))

    def processes(self) -> list[procs.Process]:
        return procs.belonging(str(self.prefix))

    def stop(self, sig: int = signal.SIGINT, deadline: float = 30.0) -> int | None:
        """Ends it as Ctrl-C does; its exit status. A process that is left is an AssertionError."""
        if self.process is None:
            return None
        self._seen.update(self.processes())
        try:
            if self.process.poll() is None:
                self.process.send_signal(sig)
            try:
                code = self.process.wait(deadline)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"express did not stop:\n{self.output()}") from None
            self._gone()
            return code
        finally:
            self.kill_all()
            self.process = None

    def _gone(self) -> None:
        try:
            wait_until(lambda: not self.leftovers(), 15, interval=0.05)
        except Timeout:
            raise AssertionError("left: " + "\n".join(map(str, self.leftovers()))) from None
        killed = self.process and self.process.returncode == -signal.SIGKILL
        assert killed or not (self._spool and self._spool.exists()), f"left: {self._spool}"

    def leftovers(self) -> list[procs.Process]:
        return sorted({p for p in self._seen if p.alive()} | set(self.processes()), key=lambda p: p.pid)

    def kill_all(self) -> None:
        procs.kill_tree(self.process, self.leftovers)

    def destroy(self) -> None:
        if self._spool:
            shutil.rmtree(self._spool, ignore_errors=True)
        self._claim.release()
        shutil.rmtree(self.prefix, ignore_errors=True)
