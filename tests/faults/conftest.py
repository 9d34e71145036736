"""Which fault meets which server. In the short form each fault meets one of ours, by rotation over its name, and happens
twice; in the long form (`-m long`) every one meets all of ours, twenty times where the fault counts, and some the peers."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterator

import pytest

import harness.front as fronts
from harness.front import Front, OnApache


@dataclasses.dataclass(frozen=True)
class Run:
    """On what a test runs, and how much of it."""

    kind: str
    long: bool

    def times(self, short: int = 2, long: int = 20) -> int:
        return long if self.long else short

    def __str__(self) -> str:
        return f"{self.kind}-long" if self.long else self.kind


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run" not in metafunc.fixturenames:
        return
    kinds = list(fronts.KINDS)
    short = kinds[zlib.crc32(metafunc.function.__name__.encode()) % len(kinds)]
    runs = [pytest.param(Run(short, False), id=short)]
    runs += [pytest.param(Run(k, True), id=f"{k}-long", marks=pytest.mark.long) for k in kinds]
    metafunc.parametrize("run", runs)


@pytest.fixture
def front(run: Run) -> Iterator[Callable[..., OnApache]]:
    """Makes the server of this run: `front(options=…, config=…)`."""
    made: list[Front] = []

    def make(kind: str = run.kind, **kw: object) -> Front:
        one = {**fronts.KINDS, **fronts.PEERS}[kind](**kw)
        made.append(one)
        return one

    yield make  # type: ignore[misc]
    faults = []
    for one in made:
        (one.scratch / "over").touch()
        try:
            one.stop()
        except AssertionError as e:
            faults.append(str(e))
        if isinstance(one, OnApache):
            one.server.finished = True
    assert not faults, "\n".join(faults)
