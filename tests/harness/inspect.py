"""Reads apps/inspect.wsgi."""

from __future__ import annotations

import json
from typing import Any

from .server import Server


def look(server: Server, target: str = "/", **kw: object) -> dict[str, Any]:
    """What the application at `target` says of itself."""
    r = server.get(target, **kw)
    assert r.status == 200, f"{r.status} {r.text}"
    return json.loads(r.body)
