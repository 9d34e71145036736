"""Waiting for a condition: the only way tests synchronise with processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Timeout(AssertionError):
    """A condition did not come true within its deadline."""


def wait_until(fn: Callable[[], T], deadline: float = 10.0, what: str = "", interval: float = 0.02) -> T:
    """Calls `fn` until it returns something true and returns that; raises `Timeout` after `deadline` seconds."""
    end = time.monotonic() + deadline
    while True:
        value = fn()
        if value:
            return value
        if time.monotonic() >= end:
            name = what or getattr(fn, "__name__", "condition")
            raise Timeout(f"not within {deadline} s: {name} (last value {value!r})")
        time.sleep(interval)
