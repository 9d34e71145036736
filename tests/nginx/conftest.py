"""Tests of nginx alone are left out where nginx, or the module for it, is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from harness import product
from harness.nginx import Nginx
from harness.server import Server, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if product.has_nginx():
        return
    for item in items:
        if "nginx" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="no nginx, or no module for it: see `make build`"))


@pytest.fixture(scope="module")
def shared() -> Iterator[Callable[..., Server]]:
    """Makes servers that live as long as the module's tests: `shared(config)`; `kind`: of which class."""
    with contextlib.ExitStack() as stack:
        yield lambda config, kind=Nginx, **kw: stack.enter_context(running(kind(config, **kw)))
