"""What an application that runs as the server's user can do to ctl.sock (R21)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness import product
from harness.plan import Plan
from harness.server import Server
from harness.wait import wait_until

pytestmark = [pytest.mark.ours, pytest.mark.root]
CROWD = """
import os, resource, socket, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 9000), hard))
held = []
print("go", flush=True)
while True:
    s = socket.socket(socket.AF_UNIX)
    s.setblocking(False)
    try:
        s.connect(sys.argv[1])
        held.append(s)
    except BlockingIOError:
        pass
    time.sleep(0.0005)
    if len(held) > 7000:
        del held[:5000]
"""


def test_a_crowd_of_silent_connections(serve) -> None:
    """R21: nobody who may connect can keep server processes from registering, or people from commanding, by opening
    connections and saying nothing."""
    one: Server = serve(Plan("processes=1 threads=4"))
    directory = next(one.run.glob("**/ctl.sock")).parent
    user = product.server_user()[0]
    crowd = [
        subprocess.Popen([sys.executable, "-c", CROWD, str(directory / "ctl.sock")], user=user, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    try:
        for c in crowd:
            assert c.stdout.readline() == b"go\n"
        for _ in range(3):
            one.graceful()
            assert one.get("/").status == 200
            one.ctl("reload")
            wait_until(lambda: one.ready(), 5)
    finally:
        for c in crowd:
            c.kill()
            c.wait()
            c.stdout.close()
    assert one.get("/").status == 200
