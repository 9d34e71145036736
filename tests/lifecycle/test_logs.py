"""R20: everything the application writes reaches the error log, one record a line."""

from __future__ import annotations

import re

import pytest

from harness import product
from harness.plan import Plan, Script
from harness.server import Server
from harness.wait import wait_until

PLAN = Plan("processes=1 threads=4", "conform.wsgi")


@pytest.fixture(scope="module")
def server(serve_all) -> Server:
    return serve_all(PLAN)


def test_channels(server: Server) -> None:
    """R20: wsgi.errors, writelines, print, sys.stderr and logging, each as a record of its own."""
    server.log.allow("(errors|lines1|lines2|stdout|stderr|logging)-channels")
    assert server.get("/errors?channels").status == 200
    for word in ("errors", "lines1", "lines2", "stdout", "stderr", "logging"):
        found = server.log.wait(f"{word}-channels")
        assert len(found) == 1 and re.match(server.RECORD, found[0]), found


@pytest.mark.ours
def test_records_are_tied_to_their_request(server: Server) -> None:
    """R20: while a request runs, its records carry the client, as httpd's own records do."""
    server.log.allow("tied")
    with server.connect() as c:
        assert c.request(target="/errors?tied").status == 200
        port = c.sock.getsockname()[1]
    for word in ("errors", "stdout", "stderr", "logging"):
        line = server.log.wait(f"{word}-tied")[0]
        assert re.search(server.tied(port), line), line


@pytest.mark.ours
def test_levels(server: Server) -> None:
    """R20: a fitting level: logging's own, print() below errors."""
    server.log.allow("levels")
    server.get("/errors?levels")
    logging_line = server.log.wait("logging-levels")[0]
    assert re.search(r"(:|\[)warn\]", logging_line)
    stdout_line = server.log.wait("stdout-levels")[0]
    assert re.search(r"(:|\[)(info|notice)\]", stdout_line)


def test_raw_descriptor(server: Server) -> None:
    """R20: what a C library writes to descriptor 2 arrives too."""
    server.log.allow("rawfd-raw")
    assert server.get("/raw-fd?raw").status == 200
    assert server.log.wait("rawfd-raw")


def test_forged_line(server: Server) -> None:
    """R20: control characters are escaped: an application cannot forge a record of the server."""
    server.log.allow("forged-begin")
    server.get("/forged")
    found = server.log.wait("forged-begin")
    if product.is_ours():
        assert (
            len(found) == 1
            and re.search(r"forged-begin\\+r\[Sun.*\\+x1b\[31m", found[0])
            and re.search(r"-end($| while )", found[0])
        )
    assert not [line for line in server.log.all if line.text.startswith("[Sun Jan 01 00:00:00 2023]")]


def test_partial_line(server: Server) -> None:
    """R20: a line without its end is written at the end of the request."""
    server.log.allow("partial-p1")
    server.get("/partial-line?p1")
    assert server.log.wait("partial-p1")


@pytest.mark.ours
def test_traceback(server: Server) -> None:
    """R20: each line of a traceback is a record with httpd's prefix and its request; the first carries a code."""
    server.expect_log("deliberate-trace")
    server.log.allow(r"MWR\d{4}|Traceback|File |Error|  \S")
    with server.connect() as c:
        assert c.request(target="/raises?trace").status == 500
        port = c.sock.getsockname()[1]
    server.log.wait("RuntimeError: deliberate-trace")
    related = server.log.find(server.tied(port))
    assert re.search(r"MWR\d{4}", related[0]) and "conform.wsgi" in related[0]
    assert any("Traceback (most recent call last)" in line for line in related)
    assert any("in raises" in line for line in related)
    assert not [line.text for line in server.log.poll() if line.level is None and line.bad]


@pytest.mark.ours
def test_long_record(server: Server) -> None:
    """R20: a record of 1 MiB is cut, does not block, and the server goes on."""
    server.log.allow(".{5000}|xxxx|MWR0427")
    server.write("long.wsgi", "def application(e, s):\n    e['wsgi.errors'].write('x' * (1 << 20) + '\\n')\n"
                 "    s('200 OK', [('Content-Length', '0')])\n    return []\n")  # fmt: skip
    server.plan(PLAN.replace(scripts={"/long": Script("long.wsgi")}))
    server.write_config()
    server.graceful()
    assert server.get("/long").status == 200
    line = server.log.wait("xxxx")[0]
    assert len(line) < 20000


def test_startup_output(serve) -> None:
    """R20: output at import time arrives as well."""
    server = serve(PLAN.replace(root="talks.wsgi"), start=False)
    server.log.allow("import-(print|stderr)")
    server.write("talks.wsgi", "import sys\nprint('import-print')\nprint('import-stderr', file=sys.stderr)\n"
                 "def application(e, s):\n    s('200 OK', [('Content-Length', '0')])\n    return []\n")  # fmt: skip
    server.start()
    assert server.get().status == 200
    assert server.log.wait("import-print") and server.log.wait("import-stderr")


@pytest.mark.ours
@pytest.mark.parametrize("touch", [False, True])
def test_rotation(serve, touch: bool) -> None:
    """R20, pitfall H27: after the log has been moved and the server told, lines of the worker, also raw and untied
    ones, arrive in the new file."""
    server: Server = serve(PLAN)
    server.log.allow("-(before|after)")
    assert server.get("/raw-fd?before").status == 200
    server.log.wait("rawfd-before")
    old = server.error_log.with_suffix(".1")
    server.error_log.rename(old)
    server.log.add(old)
    if touch:
        server.error_log.touch()
    server.reopen()
    assert server.get("/raw-fd?after").status == 200
    assert server.get("/errors?after").status == 200

    def arrived() -> bool:
        text = server.error_log.read_text()
        return all(w in text for w in ("rawfd-after", "errors-after", "stderr-after"))

    wait_until(arrived, 10, "lines in the new file")
    assert "-after" not in old.read_text()
