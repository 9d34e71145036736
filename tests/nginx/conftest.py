"""Tests of nginx alone are left out where nginx, or the module for it, is not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from harness import product
from harness.apache import running
from harness.nginx import Nginx


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if product.has_nginx():
        return
    for item in items:
        if "nginx" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="no nginx, or no module for it: see `make build`"))


@pytest.fixture
def nginx() -> Iterator[Callable[..., Nginx]]:
    """Makes servers for one test: `nginx(config)` starts one, `start=False` leaves that to the test."""
    servers: list[Nginx] = []

    def make(config: str = "", start: bool = True, **kw: object) -> Nginx:
        server = Nginx(config, **kw)  # type: ignore[arg-type]
        servers.append(server)
        if start:
            server.start()
        return server

    yield make
    faults = []
    for server in servers:
        try:
            server.stop()
        except AssertionError as e:
            faults.append(str(e))
        server.finished = True
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="module")
def shared() -> Iterator[Callable[..., Nginx]]:
    """Makes servers that live as long as the module's tests: `shared(config)`."""
    with contextlib.ExitStack() as stack:
        yield lambda config, **kw: stack.enter_context(running(Nginx(config, **kw)))
