"""The server that the conformance tests share, one for each kind (harness/site.py), and applications put on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.case import Case, deploy
from harness.site import KINDS, Site, site


@pytest.fixture(scope="session", params=list(KINDS))
def server(request: pytest.FixtureRequest) -> Iterator[Site]:
    """The conformance site."""
    with site(request.param) as running:
        yield running


@pytest.fixture
def case(server: Site) -> Callable[..., Case]:
    """Puts an application of the test on the site: `case(app)`, `case(app, "/single")`."""
    return lambda app, mount="/case": deploy(server, app, mount)


@pytest.fixture(params=["/case", "/checked"], ids=["plain", "checked"])
def rightful(request: pytest.FixtureRequest, server: Site) -> Callable[..., Case]:
    """The same for an application that keeps every rule: alone, and under wsgiref.validate, which must find nothing
    wrong with the server either."""
    return lambda app: deploy(server, app, request.param)
