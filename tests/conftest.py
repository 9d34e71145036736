"""Fixtures of the whole suite: servers that always stop, and the log oracle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from harness import apache as apache_module
from harness import product
from harness.apache import Apache, running
from harness.express import Express


def pytest_report_header() -> list[str]:
    try:
        return [f"module under test: {product.module()}", f"httpd: {product.httpd()}"]
    except product.Missing as e:
        return [f"module under test: {e}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        ours = product.is_ours()
    except product.Missing as e:
        if any("worker" not in item.path.parts for item in items):
            pytest.exit(str(e), 3)
        return
    for item in items:
        if item.get_closest_marker("ours") and not ours:
            item.add_marker(pytest.mark.skip(reason="states behaviour of this module only"))
        if item.get_closest_marker("root") and not product.IS_ROOT:
            item.add_marker(pytest.mark.skip(reason="needs a server started as root"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Adds the servers' logs to the report of a failure, and keeps nothing else of them."""
    report = yield
    if report.failed:
        for server in apache_module.LIVE:
            server.log.poll()
            lines = "\n".join(line.text for line in server.log.all[-60:])
            report.sections.append((f"log of {server.prefix}", lines))
    return report


@pytest.fixture(autouse=True)
def _log_oracle() -> Iterator[None]:
    """After each test every server's log is judged, also of those that the test has stopped."""
    for server in apache_module.LIVE:
        server.log.begin()
    yield
    complaints = []
    for server in list(apache_module.LIVE):
        complaints += server.log.verdict()
        server.log.begin()
        if server.finished:
            server.destroy()
    assert not complaints, "\n".join(complaints)


def _stop_all(servers: list[Apache]) -> None:
    faults = []
    for server in servers:
        try:
            server.stop()
        except AssertionError as e:
            faults.append(str(e))
        server.finished = True
    assert not faults, "\n".join(faults)


@pytest.fixture
def apache() -> Iterator[Callable[..., Apache]]:
    """Makes servers for one test: `apache(config, mpm=…)` starts one, `start=False` leaves that to the test."""
    servers: list[Apache] = []

    def make(config: str = "", start: bool = True, **kw: object) -> Apache:
        server = Apache(config, **kw)  # type: ignore[arg-type]
        servers.append(server)
        return server.start() if start else server

    yield make
    _stop_all(servers)


@pytest.fixture(scope="module")
def shared() -> Iterator[Callable[..., Apache]]:
    """Makes servers that live as long as the module's tests: `shared(config, mpm=…)`."""
    with contextlib.ExitStack() as stack:
        yield lambda config, **kw: stack.enter_context(running(config, **kw))


@pytest.fixture(scope="session", autouse=True)
def _interpreter_copies() -> Iterator[None]:
    yield
    product.remove_copies()


@pytest.fixture
def express() -> Iterator[Callable[..., Express]]:
    """Makes launchers for one test: `express()`; each is stopped at the end."""
    made: list[Express] = []

    def make(**kw: object) -> Express:
        made.append(Express(**kw))  # type: ignore[arg-type]
        return made[-1]

    yield make
    faults = []
    for one in made:
        try:
            one.stop()
        except AssertionError as e:
            faults.append(str(e))
        one.kill_all()
        one.destroy()
    assert not faults, "\n".join(faults)
