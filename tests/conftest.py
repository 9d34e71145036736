"""Fixtures of the whole suite: servers that always stop, and the log oracle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from harness import kinds, product
from harness import server as servers
from harness.apache import Apache
from harness.express import SERVERS, Express
from harness.nginx import Nginx
from harness.plan import Plan
from harness.server import Server, running


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
        for server in servers.LIVE:
            server.log.poll()
            lines = "\n".join(line.text for line in server.log.all[-60:])
            report.sections.append((f"log of {server.prefix}", lines))
    return report


@pytest.fixture(autouse=True)
def _log_oracle() -> Iterator[None]:
    """After each test every server's log is judged, also of those that the test has stopped."""
    for server in servers.LIVE:
        server.log.begin()
    yield
    complaints = []
    for server in list(servers.LIVE):
        complaints += server.log.verdict()
        server.log.begin()
        if server.finished:
            server.destroy()
    assert not complaints, "\n".join(complaints)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which kinds of server a test meets that takes a `server_kind`: in the short form one, by rotation over its name, in the
    long form (`-m long`) the others. `@pytest.mark.on("event", …)` leaves kinds out, `@pytest.mark.everywhere` has every
    one in the short form already."""
    if "server_kind" not in metafunc.fixturenames:
        return
    only = metafunc.definition.get_closest_marker("on")
    all_of_them = [k for k in kinds.KINDS if not only or k in only.args]
    first = kinds.turn(metafunc.function.__name__, all_of_them)
    everywhere = metafunc.definition.get_closest_marker("everywhere")
    params = [pytest.param(k, id=k, marks=() if everywhere or k == first else pytest.mark.long) for k in all_of_them]
    metafunc.parametrize("server_kind", params, scope="module")


@contextlib.contextmanager
def _made() -> Iterator[list[Server]]:
    """Servers of one test: all are stopped, and what is wrong with any is said."""
    made: list[Server] = []
    try:
        yield made
    finally:
        faults = []
        for server in made:
            try:
                server.stop()
            except AssertionError as e:
                faults.append(str(e))
            server.finished = True
    assert not faults, "\n".join(faults)


@pytest.fixture
def apache() -> Iterator[Callable[..., Apache]]:
    """Makes servers for one test: `apache(config, mpm=…)` starts one, `start=False` leaves that to the test."""
    with _made() as made:

        def make(config: str = "", start: bool = True, **kw: object) -> Apache:
            server = Apache(config, **kw)  # type: ignore[arg-type]
            made.append(server)
            return server.start() if start else server  # type: ignore[return-value]

        yield make


@pytest.fixture
def nginx() -> Iterator[Callable[..., Nginx]]:
    """Makes servers for one test: `nginx(config)` starts one, `start=False` leaves that to the test."""
    with _made() as made:

        def make(config: str = "", start: bool = True, **kw: object) -> Nginx:
            server = Nginx(config, **kw)  # type: ignore[arg-type]
            made.append(server)
            return server.start() if start else server  # type: ignore[return-value]

        yield make


@pytest.fixture
def serve(server_kind: str) -> Iterator[Callable[..., Server]]:
    """Makes servers of the test's kind for one test: `serve(Plan(…))` starts one, `start=False` leaves that to it."""
    with _made() as made:

        def make(plan: Plan | None = None, start: bool = True, **kw: object) -> Server:
            server = kinds.on(server_kind, plan or Plan(), **kw)  # type: ignore[arg-type]
            made.append(server)
            return server.start() if start else server

        yield make


@pytest.fixture(scope="module")
def shared() -> Iterator[Callable[..., Server]]:
    """Makes servers that live as long as the module's tests: `shared(config, mpm=…)`."""
    with contextlib.ExitStack() as stack:
        yield lambda site, **kw: stack.enter_context(running(site if isinstance(site, Server) else Apache(site, **kw)))


@pytest.fixture(scope="module")
def serve_all(server_kind: str) -> Iterator[Callable[..., Server]]:
    """Makes servers of the tests' kind that live as long as the module's tests of that kind: `serve_all(Plan(…))`."""
    with contextlib.ExitStack() as stack:
        yield lambda plan, **kw: stack.enter_context(running(kinds.on(server_kind, plan, **kw)))


@pytest.fixture(scope="session", autouse=True)
def _interpreter_copies() -> Iterator[None]:
    yield
    product.remove_copies()


@pytest.fixture(params=list(SERVERS))
def web_server(request: pytest.FixtureRequest) -> str:
    """Each server that express can run, as --server takes it."""
    if request.param == "nginx" and not product.has_nginx():
        pytest.skip("no nginx, or no module for it: see `make build`")
    return request.param


@pytest.fixture
def express_on() -> Iterator[Callable[..., Express]]:
    """Makes launchers for one test: `express_on("nginx")`; each is stopped at the end."""
    made: list[Express] = []

    def make(server: str | None, **kw: object) -> Express:
        made.append(Express(server=server, **kw))  # type: ignore[arg-type]
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


@pytest.fixture
def express(web_server: str, express_on: Callable[..., Express]) -> Callable[..., Express]:
    """The same, and the test runs once on each server: `express()`."""
    return lambda **kw: express_on(**{"server": web_server, **kw})
