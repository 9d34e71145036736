"""A FUSE file system whose daemon can be stopped: whoever asks it for anything then waits."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from . import product
from .wait import wait_until


class Fuse:
    """`where` shows what lies in `real`."""

    def __init__(self, place: pathlib.Path, daemon: subprocess.Popen[bytes]):
        self.real, self.where, self.daemon = place / "real", place / "fuse", daemon

    def halt(self) -> None:
        """From now on it answers nobody."""
        self.daemon.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again, also what was asked meanwhile."""
        self.daemon.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def fuse() -> Iterator[Fuse]:
    """Mounts one, for every user of the machine. The test is skipped where that cannot be done."""
    bindfs = shutil.which("bindfs")
    if not bindfs or not product.IS_ROOT:
        pytest.skip("needs bindfs and root for a FUSE file system")
    # Not below a server's own directory: its daemon would count as one of the server's processes.
    place = pathlib.Path(tempfile.mkdtemp(prefix="mwr-fuse-"))
    try:
        place.chmod(0o755)
        for name in ("real", "fuse"):
            (place / name).mkdir()
        command = [bindfs, "-f", "-o", "allow_other", str(place / "real"), str(place / "fuse")]
        daemon = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        one = Fuse(place, daemon)
        try:
            wait_until(lambda: os.path.ismount(one.where) or daemon.poll() is not None, 10, "bindfs has mounted")
            if daemon.poll() is not None:
                assert daemon.stderr
                pytest.skip(f"no FUSE here: {daemon.stderr.read().decode().strip()}")
            yield one
        finally:
            one.go_on()
            subprocess.run(["umount", "-l", str(one.where)], capture_output=True)
            daemon.terminate()
            daemon.wait(10)
    finally:
        shutil.rmtree(place)
