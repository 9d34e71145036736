"""Free TCP ports, claimed by a lock so that test runs beside each other do not take the same one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket

_DIR = pathlib.Path(f"/tmp/mwr-test-ports-{os.geteuid()}")


class Port:
    """A claimed port; `release` gives the claim back, not before the server that uses it has gone."""

    def __init__(self) -> None:
        _DIR.mkdir(mode=0o700, exist_ok=True)
        for _ in range(100):
            with socket.socket() as s:
                s.bind(("127.0.0.1", 0))
                self.number = s.getsockname()[1]
            self._path = _DIR / str(self.number)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(self._fd)
                continue
            return
        raise RuntimeError("no free port could be claimed")

    def release(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            os.close(self._fd)
            self._fd = -1
