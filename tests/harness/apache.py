"""A private Apache: its configuration and restarts."""

from __future__ import annotations

import pathlib
import signal
from collections.abc import Iterable
from typing import Any

from . import procs, product
from .plan import Plan
from .server import Server
from .wait import wait_until

MPM = {
    "event": """StartServers 2
ServerLimit 6
ThreadLimit 32
ThreadsPerChild 32
MinSpareThreads 16
MaxSpareThreads 128
MaxRequestWorkers 128""",
    "prefork": """StartServers 4
MinSpareServers 2
MaxSpareServers 64
ServerLimit 64
MaxRequestWorkers 64""",
}
MPM["worker"] = MPM["event"]

BASE_MODULES = [
    "authz_core",
    "authn_core",
    "authn_file",
    "authz_user",
    "auth_basic",
    "alias",
    "mime",
    "env",
    "setenvif",
    "dir",
    "headers",
    "rewrite",
    "authz_host",
]


class Apache(Server):
    """One server. `config` is put at the end of the main server's configuration; {prefix}, {apps}, {port}, {run} and
    {scratch} in it are replaced."""

    NAME, CONFIG, SERVES = "httpd", "httpd.conf", "resuming normal operations"
    GRACEFUL_STOP, RELOAD = signal.SIGWINCH, signal.SIGUSR1
    KILLED = r"AH00051|AH00052"
    RECORD = r"\[[^\]]+\] \[wsgi:\w+\] \[pid \d+"

    def __init__(
        self,
        config: str = "",
        mpm: str = "event",
        modules: Iterable[str] = (),
        server_config: str | None = None,
        log_level: str = "notice wsgi:info",
        allow_override: str = "AllowOverride None",
        module: pathlib.Path | None = None,
        **kw: Any,
    ):
        super().__init__(config, **kw)
        self.mpm, self.modules = mpm, list(modules)
        #: another module than the one under test, to compare with
        self.module = module
        self.allow_override, self.log_level = allow_override, log_level
        self.server_config = MPM[mpm] if server_config is None else server_config

    # -- configuration

    def plan(self, plan: Plan) -> None:
        self.config = plan.apache()

    def text(self) -> str:
        """The whole configuration."""
        wanted = [f"mpm_{self.mpm}", *BASE_MODULES, *self.modules]
        if self.tls:
            wanted += ["ssl", "socache_shmcb"]
        if "mod_unixd.c" not in product.compiled_in() and product.has_module("unixd"):
            wanted.insert(1, "unixd")
        loads = [
            f"LoadModule {m}_module {product.modules_dir()}/mod_{m}.so"
            for m in dict.fromkeys(wanted)
            if f"mod_{m}.c" not in product.compiled_in()
        ]
        user, group = product.server_user()
        lines = [
            f"ServerRoot {self.prefix}",
            "ServerName localhost",
            f"Listen 127.0.0.1:{self.port}",
            *([f"Listen 127.0.0.1:{self.tls_port} https"] if self.tls else []),
            f"PidFile {self.run}/httpd.pid",
            f"DefaultRuntimeDir {self.run}",
            *loads,
            *([f"User {user}", f"Group {group}"] if product.IS_ROOT else []),
            f"ErrorLog {self.error_log}",
            f"LogLevel {self.log_level if self.load else 'notice'}",
            "TypesConfig /dev/null",
            "AddType text/css .css",
            f"DocumentRoot {self.prefix}/htdocs",
            "KeepAlive On",
            "MaxKeepAliveRequests 0",
            "KeepAliveTimeout 30",
            "Timeout 30",
            self.server_config,
            f"<Directory />\nRequire all granted\n{self.allow_override}\n</Directory>",
        ]
        if self.load:
            lines += [f"LoadModule wsgi_module {self.module or product.module()}", f"WSGISocketPrefix {self.run}/wsgi"]
        if self.tls:
            cert = self.certificate()
            lines += [
                f"SSLSessionCache shmcb:{self.run}/ssl(65536)",
                f"<VirtualHost 127.0.0.1:{self.tls_port}>",
                f"SSLEngine on\nSSLCertificateFile {cert}\nServerName localhost",
                "</VirtualHost>",
            ]
        return "\n".join(lines) + "\n" + self.expand(self.config) + "\n"

    def command(self, *args: str) -> list[str]:
        where = ["-f", str(self.prefix / self.CONFIG), "-d", str(self.prefix)]
        return [product.httpd(), *where, *([] if "-t" in args else ["-DFOREGROUND"]), *args]

    # -- life

    def is_ours(self) -> bool:
        return super().is_ours() and self.module is None

    def _starts(self) -> int:
        # one process for everything says nothing
        return super()._starts() + ("-X" in self.args)

    def tied(self, port: int) -> str:
        return rf"\[(client|remote) 127\.0\.0\.1:{port}\]"

    def reopen(self) -> None:
        self.graceful()

    def graceful(self, deadline: float = 30.0) -> None:
        """Graceful restart; returns when the new configuration is in force."""
        self.start_anew(self.RELOAD, deadline)

    def restart(self, deadline: float = 30.0) -> None:
        """Full restart; returns when the server accepts again."""
        self.start_anew(signal.SIGHUP, deadline)
        wait_until(self._up, deadline)

    def server_processes(self) -> list[procs.Process]:
        return self.children()
