"""Which fault meets which server. In the short form each fault meets one of ours, by rotation over its name, and happens
twice; in the long form (`-m long`) every one meets all of ours, twenty times where the fault counts, and some the peers."""

from __future__ import annotations

import dataclasses
import datetime
import os
import zlib
from collections.abc import Callable, Iterator

import pytest

import harness.front as fronts
from harness import product
from harness.counted import Tally
from harness.front import Front, Hosted


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
    kinds = list(fronts.OURS)
    short = kinds[zlib.crc32(metafunc.function.__name__.encode()) % len(kinds)]
    runs = [pytest.param(Run(short, False), id=short)]
    runs += [pytest.param(Run(k, True), id=f"{k}-long", marks=pytest.mark.long) for k in kinds]
    metafunc.parametrize("run", runs)


@dataclasses.dataclass
class Row:
    """One line of the table."""

    fault: str
    server: str
    tally: Tally

    def cells(self) -> list[str]:
        t = self.tally
        counts = [t.sent, len(t.running), len(t.lost) + len(t.wrong), len(t.twice)]
        # without a single right answer there is no latency
        times = [f"{x * 1e3:.0f}" for x in (t.p50, t.p999, t.worst)] if t.worst else ["-"] * 3
        return [self.fault, self.server, *map(str, counts), *times]


HEAD = [
    "fault",
    "server",
    "requests",
    "failed in a killed process",
    "lost",
    "served twice",
    "p50 ms",
    "p99.9 ms",
    "worst ms",
]
BEGIN, END = "<!-- faults: begin, written by the long form of tests/faults -->", "<!-- faults: end -->"


class Table:
    """What the long form measures, printed at its end and written to docs/reliability.md with MWR_WRITE_DOCS."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.loads: list[float] = []

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.loads.append(os.getloadavg()[0])

    def text(self) -> str:
        order = list(dict.fromkeys(r.fault for r in self.rows))
        rows = sorted(self.rows, key=lambda r: order.index(r.fault))
        lines = [HEAD, ["---"] * 2 + ["---:"] * (len(HEAD) - 2), *(r.cells() for r in rows)]
        return "".join("| " + " | ".join(line) + " |\n" for line in lines)

    def write(self) -> None:
        path = product.ROOT / "docs" / "reliability.md"
        before, begin, rest = path.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        assert begin and end, f"{path} has no place for the table"
        day = datetime.date.today().isoformat()
        head = f"Measured {day}, 8 clients, 2 processes of 5 threads, one machine with {os.cpu_count()} processors, whose load was "
        head += f"{min(self.loads):.0f} to {max(self.loads):.0f} (average of a minute, other work included)."
        path.write_text(f"{before}{begin}\n{head}\n\n{self.text()}{end}{after}")


_TABLE = Table()


@pytest.fixture
def table() -> Table:
    """Where a long run leaves its figures."""
    return _TABLE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any("test_table" in str(r.nodeid) for r in terminalreporter.stats.get("passed", [])):
        terminalreporter.write("\n" + _TABLE.text())
        if os.environ.get("MWR_WRITE_DOCS"):
            _TABLE.write()


@pytest.fixture
def front_of() -> Iterator[Callable[..., Front]]:
    """Makes a server of any kind, peers too: `front_of("gunicorn")`."""
    made: list[Front] = []

    def make(kind: str, **kw: object) -> Front:
        one = {**fronts.OURS, **fronts.PEERS}[kind](**kw)
        made.append(one)
        return one

    yield make
    _end(made)


@pytest.fixture
def front(run: Run) -> Iterator[Callable[..., Hosted]]:
    """Makes the server of this run: `front(options=…, plan={…})`."""
    made: list[Front] = []

    def make(kind: str = run.kind, **kw: object) -> Front:
        one = {**fronts.OURS, **fronts.PEERS}[kind](**kw)
        made.append(one)
        return one

    yield make  # type: ignore[misc]
    _end(made)


def _end(made: list[Front]) -> None:
    faults = []
    for one in made:
        (one.scratch / "over").touch()
        try:
            one.stop()
        except AssertionError as e:
            faults.append(str(e))
        if isinstance(one, Hosted):
            one.server.finished = True
    assert not faults, "\n".join(faults)
