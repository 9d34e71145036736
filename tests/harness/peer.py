"""Another WSGI server, waitress, with the applications under test: what an answer would be without this module."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import subprocess
from collections.abc import Iterator

from . import product
from .ports import Port
from .wait import wait_until


@contextlib.contextmanager
def waitress(apps: pathlib.Path, mounts: dict[str, str], env: dict[str, str], log: pathlib.Path) -> Iterator[int]:
    """Serves scripts below `apps` at their mounts; gives the port. What the applications print goes to `log`."""
    port = Port()
    python = str(product.venv() / "bin" / "python")
    pairs = [f"{mount}={apps / script}" for mount, script in mounts.items()]
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [python, str(apps / "peer.py"), str(port.number), *pairs],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"} | env,
        )  # fmt: skip

    def up() -> bool:
        assert process.poll() is None, f"waitress ended:\n{log.read_text(errors='replace')[-3000:]}"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port.number), timeout=1).close()
            return True
        return False

    try:
        wait_until(up, 30, "waitress serves")
        yield port.number
    finally:
        process.kill()
        process.wait()
        port.release()
