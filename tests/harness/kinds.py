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


def on(kind: str, plan: Plan, room: str | None = None, **kw: Any) -> Server:
    """A server of that kind with that site, not started. `room` says of httpd how many it may serve."""
    server = Nginx(**kw) if kind == "nginx" else Apache(mpm=kind, server_config=room, **kw)
    server.plan(plan)
    return server
