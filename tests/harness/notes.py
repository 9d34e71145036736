"""What an application under test notes in its server's scratch directory, and how it is told to go on."""

from __future__ import annotations

from .server import Server
from .wait import wait_until

#: the application's side: `note` writes a line, `wait` returns after `let`
APP = """
import os, time

SCRATCH = "{scratch}"

def note(line):
    fd = os.open(SCRATCH + "/notes", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, line.encode() + b"\\n")
    os.close(fd)

def wait(name):
    while not os.path.exists(SCRATCH + "/go-" + name):
        time.sleep(0.005)
"""


def notes(server: Server) -> list[str]:
    """The lines so far."""
    path = server.scratch / "notes"
    return path.read_text().splitlines() if path.exists() else []


def noted(server: Server, line: str) -> None:
    """Waits for a line."""
    wait_until(lambda: line in notes(server), 10, f"the application notes '{line}'; has {notes(server)[-5:]}")


def let(server: Server, name: str) -> None:
    """Lets the application go on that waits for `name`."""
    (server.scratch / f"go-{name}").touch()
