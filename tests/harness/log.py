"""The server's log as an oracle: a record at warning or above that the test has not declared fails the test."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable

from .wait import Timeout, wait_until

#: httpd's and the supervisor's: [time] [module:level] [pid ...] ...; nginx's: date time [level] pid#thread: ...
_RECORD = re.compile(r"(?:\[[^\]]*\] \[[\w-]*:|\d{4}/\d\d/\d\d [\d:]{8} \[)(?P<level>[a-z]+\d?)\] ")
BAD_LEVELS = {"warn", "error", "crit", "alert", "emerg"}
#: lines without httpd's prefix that must not pass unnoticed
_SUSPICIOUS = re.compile(r"panicked at|Sanitizer|Fatal Python error|MWR\d{4}|Traceback|Segmentation fault|AH\d{5}")


#: what an application's exception leaves: our record (or mod_wsgi's), the lines of the traceback, its last line
EXCEPTION = (
    r"MWR043[01]: |WSGI\d{4}|(\]|#\d+:( \*\d+)?) (Traceback \(most recent call last\):| +\S|The above exception"
    r"|During handling of|[\w.<>]*(Error|Exception|Exit|Interrupt|Iteration|Own)\b)"
)
#: the same, and what the server says of the answer that it had to break off
CUT = EXCEPTION + r"|MWR0216: "


@dataclasses.dataclass
class Line:
    """One line of the log."""

    text: str
    #: None for a line without httpd's prefix
    level: str | None

    @property
    def bad(self) -> bool:
        if self.level is None:
            return bool(_SUSPICIOUS.search(self.text))
        return self.level in BAD_LEVELS


class _Tail:
    """Follows one path, also over a rotation."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._file = None
        self._rest = ""

    def read(self) -> list[str]:
        lines: list[str] = []
        while True:
            if self._file is None:
                try:
                    self._file = open(self.path, encoding="utf-8", errors="backslashreplace", newline="\n")  # noqa: SIM115
                except FileNotFoundError:
                    return lines
            text = self._rest + self._file.read()
            *whole, self._rest = text.split("\n")
            lines += whole
            try:
                same = os.stat(self.path).st_ino == os.fstat(self._file.fileno()).st_ino
            except FileNotFoundError:
                same = True
            if same:
                return lines
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file:
            self._file.close()


class Oracle:
    """All logs of one server, read on; `lines` is what came since the last `begin`."""

    def __init__(
        self,
        *paths: pathlib.Path,
        harmless: str | None = None,
        translate: Callable[[str], str] = lambda pattern: pattern,
    ):
        #: what a server warns of that is no fault, whatever the test
        self._harmless = re.compile(harmless) if harmless else None
        #: makes of a pattern for Apache's lines one for this server's
        self._translate = translate
        self._tails = [_Tail(p) for p in paths]
        self.all: list[Line] = []
        self._from = 0
        self._expected: list[re.Pattern[str]] = []
        self._allowed: list[re.Pattern[str]] = []

    def add(self, path: pathlib.Path) -> None:
        """Follows one more file."""
        self._tails.append(_Tail(path))

    def poll(self) -> list[Line]:
        """Reads what is new; returns all lines since `begin`."""
        for tail in self._tails:
            for text in tail.read():
                m = _RECORD.match(text)
                self.all.append(Line(text, m["level"] if m else None))
        return self.all[self._from :]

    def begin(self) -> None:
        """A new test starts: earlier lines and declarations are history."""
        self.poll()
        self._from = len(self.all)
        self._expected.clear()
        self._allowed.clear()

    def expect(self, pattern: str) -> None:
        """A line must match this until the test ends; matching lines are no fault."""
        self._expected.append(re.compile(self._translate(pattern)))

    def allow(self, pattern: str) -> None:
        """Lines that match this are no fault, and need not come."""
        self._allowed.append(re.compile(self._translate(pattern)))

    def find(self, pattern: str) -> list[str]:
        """Lines of this test that match."""
        rx = re.compile(self._translate(pattern))
        return [line.text for line in self.poll() if rx.search(line.text)]

    def wait(self, pattern: str, deadline: float = 10.0, count: int = 1) -> list[str]:
        """Waits until `count` lines match."""
        return wait_until(
            lambda: (f := self.find(pattern)) and len(f) >= count and f, deadline, f"log line {pattern!r}"
        )

    def verdict(self, deadline: float = 5.0) -> list[str]:
        """Complaints about this test's lines: undeclared bad ones and declared ones that never came."""
        complaints = []
        for rx in self._expected:
            try:
                wait_until(lambda rx=rx: any(rx.search(line.text) for line in self.poll()), deadline)
            except Timeout:
                complaints.append(f"no log line matched {rx.pattern!r}")
        declared = self._expected + self._allowed + ([self._harmless] if self._harmless else [])
        for line in self.poll():
            if line.bad and not any(rx.search(line.text) for rx in declared):
                complaints.append(f"undeclared log line: {line.text}")
        return complaints

    def close(self) -> None:
        for tail in self._tails:
            tail.close()
