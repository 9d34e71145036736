"""Fixtures of the tests that need a Docker engine; without one they are skipped, with the reason."""

from __future__ import annotations

import pathlib
import subprocess
import uuid
from collections.abc import Callable, Iterator

import pytest

from harness import docker, product
from harness.docker import Container
from harness.express import SERVERS, Words

HERE = pathlib.Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    reason = docker.engine() if mine else ""
    for item in mine:
        item.add_marker(pytest.mark.ours)
        # Objects of a cluster are judged without an engine.
        if reason and item.path.name != "test_kubernetes.py":
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def suite() -> str:
    """The Debian whose images most tests use."""
    return "bookworm"


@pytest.fixture(scope="session", params=list(SERVERS))
def server(request: pytest.FixtureRequest) -> str:
    """Each server there are images of."""
    if request.param == "nginx" and not product.has_nginx():
        pytest.skip("no module for nginx: see `make build`")
    return request.param


@pytest.fixture(scope="session")
def words(server: str) -> Words:
    """What the server calls things."""
    return SERVERS[server]


@pytest.fixture(scope="session")
def base(server: str, suite: str) -> str:
    """The image of the server."""
    return f"mod-wsgi-rs:{server}{docker.images(suite)}"


@pytest.fixture(scope="session")
def onbuild(server: str, suite: str) -> str:
    """The image to build applications from."""
    return f"mod-wsgi-rs:{server}-onbuild{docker.images(suite)}"


@pytest.fixture
def start() -> Iterator[Callable[..., Container]]:
    """Starts containers: start(image, *command, options=[...], port=8000)."""
    containers: list[Container] = []

    def go(image: str, *command: str, options: tuple[str, ...] = (), port: int = 8000) -> Container:
        publish = ("-p", f"127.0.0.1::{port}")
        made = docker.run("create", "--label", docker.LABEL, *publish, *options, image, *command).strip()
        containers.append(Container(made, port))
        docker.run("start", made)
        return containers[-1]

    yield go
    for container in containers:
        container.remove()


@pytest.fixture
def image() -> Iterator[str]:
    """A name for an image of the test, which is removed at its end."""
    tag = f"mwr-test-{uuid.uuid4().hex[:12]}:latest"
    yield tag
    docker.run("rmi", "-f", tag, status=None)


@pytest.fixture(scope="session")
def probe(base: str) -> Iterator[str]:
    """An image with an application that shows where it runs."""
    tag = f"mwr-test-{uuid.uuid4().hex[:12]}:probe"
    files = docker.tree(HERE / "apps" / "probe")
    docker.build(tag, {**files, "Dockerfile": f'FROM {base}\nCOPY . /app\nCMD ["app.wsgi"]\n'})
    yield tag
    docker.run("rmi", "-f", tag, status=None)


@pytest.fixture
def postgres() -> Iterator[str]:
    """The official image where it can be had, else a stand-in."""
    official = "postgres:17-bookworm"
    done = subprocess.run([docker.DOCKER, "image", "inspect", official], capture_output=True)
    if done.returncode == 0:
        yield official
        return
    tag = f"mwr-test-{uuid.uuid4().hex[:12]}:postgres"
    docker.build(tag, docker.tree(product.TESTS / "docker" / "apps" / "postgres"))
    yield tag
    docker.run("rmi", "-f", tag, status=None)
