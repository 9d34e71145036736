"""The kinds of servers that a test runs on."""

from __future__ import annotations

import zlib
from typing import Any

from . import product
from .apache import Apache
from .nginx import Nginx
from .plan import Plan
from .server import Server

#: every kind of this machine
KINDS = ["event", "prefork", *(["nginx"] if product.has_nginx() else [])]


def turn(name: str, kinds: list[str]) -> str:
    """The kind that a test of this name meets where it meets one only."""
    return kinds[zlib.crc32(name.encode()) % len(kinds)]


#: enough processes from the start: prefork makes its next one at its tick of a second, which is not what is measured
ROOMY = {"prefork": "StartServers 24\nMinSpareServers 12\nMaxSpareServers 64\nServerLimit 64\nMaxRequestWorkers 64\n"}


def on(kind: str, plan: Plan, room: dict[str, str] | None = None, **kw: Any) -> Server:
    """A server of that kind with that site, not started. `room`: how many clients httpd may serve, by its kind."""
    server = Nginx(**kw) if kind == "nginx" else Apache(mpm=kind, server_config=(room or {}).get(kind), **kw)
    server.plan(plan)
    return server
