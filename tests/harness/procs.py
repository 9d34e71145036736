"""Processes of a server under test, found through /proc: also those in sessions of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterable


@dataclasses.dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same pid by its start time."""

    pid: int
    start: int
    ppid: int = dataclasses.field(compare=False, default=0)
    cmdline: tuple[str, ...] = dataclasses.field(compare=False, default=())

    def alive(self) -> bool:
        """It exists and is no zombie."""
        now = look(self.pid)
        return now is not None and now.start == self.start

    def age(self) -> float:
        """Seconds since it was started."""
        with open("/proc/uptime") as f:
            return float(f.read().split()[0]) - self.start / os.sysconf("SC_CLK_TCK")

    def kill(self, sig: int = signal.SIGKILL) -> None:
        """Sends a signal if this very process still exists."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def __str__(self) -> str:
        return f"{self.pid} {' '.join(self.cmdline)[:160]}"


def look(pid: int) -> Process | None:
    """The process with this pid, None when there is none or only a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            text = f.read()
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            cmdline = f.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    args = tuple(a.decode("utf-8", "replace") for a in cmdline.rstrip(b"\0").split(b"\0"))
    return Process(pid, int(fields[19]), int(fields[1]), args)


def everything() -> list[Process]:
    """Every process that is not a zombie."""
    return [p for name in os.listdir("/proc") if name.isdigit() and (p := look(int(name)))]


def descendants(roots: Iterable[int], table: list[Process] | None = None) -> list[Process]:
    """Children, grandchildren and so on of the roots, without the roots."""
    children: dict[int, list[Process]] = {}
    for p in table if table is not None else everything():
        children.setdefault(p.ppid, []).append(p)
    found: list[Process] = []
    stack = list(roots)
    while stack:
        for child in children.get(stack.pop(), ()):
            found.append(child)
            stack.append(child.pid)
    return found


def _mentions(p: Process, needle: str) -> bool:
    if any(needle in a for a in p.cmdline):
        return True
    try:
        with open(f"/proc/{p.pid}/environ", "rb") as f:
            if needle.encode() in f.read():
                return True
        if needle in os.readlink(f"/proc/{p.pid}/cwd"):
            return True
        for fd in os.listdir(f"/proc/{p.pid}/fd"):
            try:
                if needle in os.readlink(f"/proc/{p.pid}/fd/{fd}"):
                    return True
            except OSError:
                continue
    except OSError:
        pass
    return False


def belonging(prefix: str) -> list[Process]:
    """Processes that name the prefix in their command line, first environment, working directory or open files, and
    all their descendants; the tests' own process and its ancestors excepted."""
    own = set()
    pid = os.getpid()
    while pid > 1:
        own.add(pid)
        p = look(pid)
        pid = p.ppid if p else 0
    table = everything()
    found = {p for p in table if p.pid not in own and _mentions(p, prefix)}
    found.update(d for d in descendants([p.pid for p in found], table) if d.pid not in own)
    return sorted(found, key=lambda p: p.pid)


def memory_kib(pid: int, field: str = "Rss") -> int:
    """A sum of /proc/<pid>/smaps_rollup, KiB."""
    with open(f"/proc/{pid}/smaps_rollup") as f:
        for line in f:
            if line.startswith(field + ":"):
                return int(line.split()[1])
    raise ValueError(field)


def maps(pid: int) -> int:
    """Number of mappings."""
    with open(f"/proc/{pid}/maps") as f:
        return sum(1 for _ in f)


def descriptors(pid: int) -> int:
    """Number of open descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    """Number of threads."""
    return len(os.listdir(f"/proc/{pid}/task"))


def open_files(pid: int, below: str) -> int:
    """Number of open descriptors whose file lies, or lay, below a directory."""
    found = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/{pid}/fd/{name}").startswith(below)
    return found


def sockets(pid: int) -> set[str]:
    """Inodes of a process's sockets: each connection has its own, and none is used again at once."""
    inodes = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    return inodes


def clients(pid: int) -> set[int]:
    """Ports of the TCP peers that this process has connections with."""
    inodes = sockets(pid)
    with open("/proc/net/tcp") as f:
        rows = [line.split() for line in f.readlines()[1:]]
    return {int(r[2].split(":")[1], 16) for r in rows if r[9] in inodes}


def kill_tree(first: subprocess.Popen[bytes] | None, left: Callable[[], list[Process]], limit: float = 10.0) -> None:
    """Ends by SIGKILL `first`, so that nothing is started anew, then whatever `left` still names."""
    if first and first.poll() is None:
        first.kill()
        first.wait()
    end = time.monotonic() + limit
    while (found := left()) and time.monotonic() < end:
        for p in found:
            p.kill()
        time.sleep(0.02)


def threads_stopped(pid: int) -> bool:
    """Whether SIGSTOP has reached every thread of a process: until then one may still begin a request."""
    tasks = [p.read_text() for p in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")]
    return bool(tasks) and all(text.rpartition(")")[2].split()[0] == "T" for text in tasks)
