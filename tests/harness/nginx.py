"""A private nginx: its configuration, reloads, and its other ways of starting."""

from __future__ import annotations

import functools
import os
import pathlib
import re
import signal
import subprocess
from typing import Any

from . import procs, product
from .log import Oracle
from .plan import Plan
from .server import Server
from .wait import wait_until


class Nginx(Server):
    """One server. `config` goes into the http block, or, with `server=True`, into its one server block; {prefix}, {apps},
    {port}, {run} and {scratch} in it are replaced. `main` stands at the top level."""

    NAME, CONFIG, SERVES = "nginx", "nginx.conf", "start worker processes"
    GRACEFUL_STOP, RELOAD = signal.SIGQUIT, signal.SIGHUP
    KILLED = r"worker process \d+ exited on signal 9"
    RECORD = r"[\d/]+ [\d:]+ \[\w+\] \d+#\d+: \*\d+ "

    def __init__(
        self,
        config: str = "",
        server: bool = True,
        main: str = "",
        http_config: str = "",
        workers: int = 2,
        daemon: bool = False,
        **kw: Any,
    ):
        super().__init__(config, **kw)
        self.in_server, self.main, self.worker_processes, self.daemon = server, main, workers, daemon
        self.http_config = http_config
        if "master_process off" in main:
            # nothing is said of worker processes
            self.SERVES = "using the"
        self._master = 0
        self.log = Oracle(
            self.error_log, self.stderr_log, harmless=r"is buffered to a temporary file", translate=translate
        )
        self.stderr_log.touch()

    # -- configuration

    def plan(self, plan: Plan) -> None:
        self.http_config, self.config = plan.nginx()

    def write_config(self, config: str | None = None) -> pathlib.Path:
        if not self.load:
            self.http_config = ""
        return super().write_config(config)

    def text(self) -> str:
        user, group = product.server_user()
        listen = f"listen 127.0.0.1:{self.port};"
        if self.tls:
            cert = self.certificate()
            # the parameter of `listen` is the older way, of which nginx warns since there is the directive
            http2 = " ssl;\nhttp2 on;" if version() >= (1, 25, 1) else " ssl http2;"
            listen += f"\nlisten 127.0.0.1:{self.tls_port}{http2}\nssl_certificate {cert};\nssl_certificate_key {cert};"
        body = self.expand(self.config)
        if self.in_server:
            body = f"server {{\n{listen}\nserver_name localhost;\nroot {self.prefix}/htdocs;\n{body}\n}}"
        lines = [
            *([f"load_module {product.nginx_module()};"] if self.load else []),
            f"daemon {'on' if self.daemon else 'off'};",
            f"worker_processes {self.worker_processes};",
            f"pid {self.run}/nginx.pid;",
            f"error_log {self.error_log} info;",
            *([f"user {user} {group};"] if product.IS_ROOT else []),
            self.expand(self.main),
            "events { worker_connections 1024; }",
            "http {",
            f"access_log {self.logs}/access.log;",
            "types { text/css css; text/html html; text/javascript js; image/svg+xml svg; }",
            *(
                f"{name}_temp_path {self.prefix}/tmp-{name};"
                for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi", *(["wsgi"] if self.load else []))
            ),
            "client_max_body_size 0;",
            "keepalive_timeout 30s;",
            "keepalive_requests 1000000;",
            self.expand(self.http_config),
            body,
            "}",
        ]
        return "\n".join(lines) + "\n"

    def command(self, *args: str) -> list[str]:
        return [product.nginx(), "-p", str(self.prefix), "-c", str(self.prefix / self.CONFIG), *args]

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
            path = self.run / "nginx.pid"
            # nginx makes the file before it writes into it
            text = path.read_text().strip() if path.exists() else ""
            self._master = int(text) if text else self._master
            return self._master
        return super().pid

    def _ended(self) -> bool:
        if self.daemon and self.process and self.process.returncode == 0:
            # the master writes its number after the process that was started has ended
            return bool(self.pid) and not procs.look(self.pid)
        return super()._ended()

    def tied(self, port: int) -> str:
        # nginx says the port of no client
        return r", client: 127\.0\.0\.1, server: localhost, request: "

    def reopen(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)
        # each process opens it for itself
        files = [f"/proc/{p.pid}/fd/2" for p in [*self.server_processes(), *filter(None, [procs.look(self.pid)])]]

        def done() -> bool:
            return self.error_log.exists() and all(os.path.samefile(f, self.error_log) for f in files)

        wait_until(done, 10, "the log has been opened anew")

    def graceful(self, deadline: float = 30.0) -> None:
        """Reload; returns when the new processes serve and the old ones take no connections any more."""
        old = self.server_processes()
        self.start_anew(self.RELOAD, deadline)

        def left() -> bool:
            now = [procs.look(p.pid) for p in old if p.alive()]
            return all("is shutting down" in p.cmdline[0] for p in now if p)

        wait_until(left, deadline, "the old processes take nothing more")

    reload = graceful

    def server_processes(self) -> list[procs.Process]:
        return [p for p in self.children() if p.cmdline and p.cmdline[0].startswith("nginx: worker process")]


def translate(pattern: str) -> str:
    """A pattern for Apache's log as one for nginx's, whose levels stand in brackets of their own: `[error]` for
    `[wsgi:error]`, `#12: ` for `] ` before the text."""
    pattern = re.sub(r"(\\\[)?wsgi:", lambda m: r"\[(?:wsgi:)?" if m[1] else r"(?:wsgi:|\[)", pattern)
    # nginx says behind a message what it was doing, and for whom
    return pattern[:-1] + r"(?:$| while |, client: )" if pattern.endswith("$") else pattern


@functools.cache
def arguments() -> str:
    """What the nginx under test was configured with."""
    out = subprocess.run([product.nginx(), "-V"], capture_output=True, text=True, check=True).stderr
    return out.split("configure arguments:")[1]


def has_cache() -> bool:
    """Whether the nginx under test has a cache."""
    return "--without-http-cache" not in arguments()


def version(binary: str | None = None) -> tuple[int, int, int]:
    """Version of the nginx under test, or of another."""
    out = subprocess.run([binary or product.nginx(), "-v"], capture_output=True, text=True, check=True).stderr
    a, b, c = out.split("nginx/")[1].split()[0].split(".")
    return int(a), int(b), int(c)
