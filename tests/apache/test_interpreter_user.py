"""R5, R6: whoever owns a virtual environment decides what its interpreter does, so it never runs as root."""

from __future__ import annotations

import pwd

import pytest

from harness.apache import Apache
from harness.server import running


@pytest.mark.ours
@pytest.mark.root
def test_configtest_runs_an_interpreter_as_its_group() -> None:
    """R5: configtest and start run each interpreter once, as the user of the group."""
    apache = Apache(
        "WSGIDaemonProcess a user=nobody python={scratch}/python\n"
        "WSGIDaemonProcess b user=nobody python={scratch}/python\n"
    )
    program = apache.scratch / "python"
    program.write_text(f'#!/bin/sh\nid -u >> {apache.scratch}/ran\nexec /usr/bin/python3 "$@"\n')
    program.chmod(0o755)
    (apache.scratch / "ran").touch()
    (apache.scratch / "ran").chmod(0o666)
    with running(apache) as server:
        status, output = server.configtest()
        assert status == 0 and output.count("interpreter cpython") == 1, output
        ran = (server.scratch / "ran").read_text().split()
        assert ran and "0" not in ran and set(ran) == {str(pwd.getpwnam("nobody").pw_uid)}, ran
        before = len(ran)
        server.graceful()
        assert (server.scratch / "ran").read_text().split()[before:].count("0") == 0
