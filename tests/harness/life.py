"""What tests of the life cycle begin with: a site of one group, and calls that go on beside the test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from .plan import Plan
from .server import Server
from .wait import wait_until


def server(
    serve: Callable[..., Server],
    options: str = "",
    processes: int = 1,
    plan: dict[str, Any] | None = None,
    **kw: Any,
) -> Server:
    """A site whose group has so many workers of three threads, all of which are ready. `plan`: more of the site."""
    one = serve(Plan(f"processes={processes} threads=3 {options}", **(plan or {})), **kw)
    wait_until(lambda: len(one.ready()) == processes, what="workers are ready")
    return one


def in_background(call: Callable[[], Any], *ignored: type[BaseException]) -> list[Any]:
    """Runs `call` in a thread; the list gets what it returns, or nothing when it raises what is ignored."""
    out: list[Any] = []

    def run() -> None:
        with contextlib.suppress(*ignored):
            out.append(call())

    threading.Thread(target=run, daemon=True).start()
    return out
