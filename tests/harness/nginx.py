"""A private nginx in a directory of its own below /tmp: what differs from the private Apache."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import socket
import subprocess

from . import procs, product
from .apache import Apache, StartFailed
from .log import Oracle
from .wait import wait_until


class Nginx(Apache):
    """One server. `config` goes into the http block, or, with `server=True`, into its one server block; {prefix}, {apps},
    {port}, {run} and {scratch} in it are replaced. `main` stands at the top level."""

    def __init__(
        self,
        config: str = "",
        server: bool = True,
        main: str = "",
        http_config: str = "",
        workers: int = 2,
        daemon: bool = False,
        **kw: object,
    ):
        super().__init__(config, **kw)  # type: ignore[arg-type]
        self.in_server, self.main, self.workers, self.daemon = server, main, workers, daemon
        self.http_config = http_config
        #: `master_process off`: nothing is said of worker processes
        self.single = False
        self.log = Oracle(self.error_log, self.stderr_log, harmless=r"is buffered to a temporary file")
        self.stderr_log.touch()

    # -- configuration

    def text(self) -> str:
        user, group = product.server_user()
        listen = f"listen 127.0.0.1:{self.port};"
        if self.tls:
            cert = self._certificate()
            listen += (
                f"\nlisten 127.0.0.1:{self.tls_port} ssl http2;\nssl_certificate {cert};\nssl_certificate_key {cert};"
            )
        body = self.expand(self.config)
        if self.in_server:
            body = f"server {{\n{listen}\nserver_name localhost;\nroot {self.prefix}/htdocs;\n{body}\n}}"
        lines = [
            f"load_module {product.nginx_module()};",
            f"daemon {'on' if self.daemon else 'off'};",
            f"worker_processes {self.workers};",
            f"pid {self.run}/nginx.pid;",
            f"error_log {self.error_log} info;",
            *([f"user {user} {group};"] if product.IS_ROOT else []),
            self.expand(self.main),
            "events { worker_connections 1024; }",
            "http {",
            f"access_log {self.logs}/access.log;",
            "types { text/css css; }",
            *(
                f"{name}_temp_path {self.prefix}/tmp-{name};"
                for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi", "wsgi")
            ),
            "keepalive_timeout 30s;",
            "keepalive_requests 1000000;",
            self.expand(self.http_config),
            body,
            "}",
        ]
        return "\n".join(lines) + "\n"

    def write_config(self, config: str | None = None) -> pathlib.Path:
        """Writes nginx.conf, with other content when given."""
        if config is not None:
            self.config = config
        path = self.prefix / "nginx.conf"
        path.write_text(self.text())
        return path

    def command(self, *args: str) -> list[str]:
        args = tuple(a for a in args if a != "-DFOREGROUND")
        return [product.nginx(), "-p", str(self.prefix), "-c", str(self.prefix / "nginx.conf"), *args]

    # -- life

    def _spawn(self) -> None:
        super()._spawn()
        if self.daemon:
            # the process that was started ends when the master is there
            assert self.process
            self.process.wait(30)

    @property
    def pid(self) -> int:
        """The master."""
        if self.daemon:
            return int((self.run / "nginx.pid").read_text())
        return super().pid

    def _up(self) -> bool:
        assert self.process
        if self.process.poll() is not None and not (self.daemon and self.process.returncode == 0):
            raise StartFailed(f"nginx ended with {self.process.returncode}:\n{self._tail()}")
        if self._resumed() == 0:
            return False
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        return False

    def _resumed(self) -> int:
        self.log.poll()
        said = "using the" if self.single else "start worker processes"
        return sum(said in line.text for line in self.log.all)

    def graceful(self, deadline: float = 30.0) -> None:
        """Reload; returns when the new workers have been started."""
        self._signal(signal.SIGHUP)

    reload = graceful

    def restart(self, deadline: float = 30.0) -> None:
        raise NotImplementedError("nginx has reloads only")

    def _signal(self, sig: int, deadline: float = 30.0) -> None:
        self.snapshot()
        before = self._resumed()
        os.kill(self.pid, sig)

        def again() -> bool:
            assert self.process
            if self.process.poll() is not None and not self.daemon:
                raise StartFailed(f"nginx ended with {self.process.returncode} in a reload:\n{self._tail()}")
            return self._resumed() > before

        wait_until(again, deadline, "nginx reloaded")
        self.snapshot()

    def server_processes(self) -> list[procs.Process]:
        """Request-serving processes of nginx."""
        return [
            p
            for p in procs.descendants([self.pid])
            if p.ppid == self.pid and p.cmdline and p.cmdline[0].startswith("nginx: worker process")
        ]

    def expect_log(self, pattern: str) -> None:
        """As for Apache; the level of a record stands in brackets of its own here, `[error]` for `[wsgi:error]`."""
        super().expect_log(_own(pattern))

    def allow_log(self, pattern: str) -> None:
        super().allow_log(_own(pattern))

    def stop(self, sig: int = signal.SIGTERM, deadline: float = 15.0) -> None:
        if self.daemon and self.process is not None:
            self.snapshot()
            with contextlib.suppress(OSError, ValueError):
                os.kill(self.pid, sig)
        super().stop(sig, deadline)


def _own(pattern: str) -> str:
    pattern = pattern.replace("wsgi:", r"(?:wsgi:|\[)")
    # nginx says behind a message what it was doing, and for whom
    return pattern[:-1] + r"(?:$| while |, client: )" if pattern.endswith("$") else pattern


def version() -> tuple[int, int, int]:
    """Version of the nginx under test."""
    out = subprocess.run([product.nginx(), "-v"], capture_output=True, text=True, check=True).stderr
    a, b, c = out.split("nginx/")[1].split()[0].split(".")
    return int(a), int(b), int(c)
