"""What operators do and what they count on: upgrades of the package, stops under a service manager, bounds of every end,
tools that write nothing, machines with little memory."""

from __future__ import annotations

import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time

import pytest

from harness import procs, product
from harness.life import in_background, server
from harness.load import Load
from harness.plan import Plan, Script
from harness.wait import wait_until

pytestmark = pytest.mark.ours


def install(where: pathlib.Path) -> None:
    """Puts module, program and worker files there as packages do: each file anew, beside and then over the old one."""
    for path in (product.module(), product.binary(), *sorted((product.module().parent / "worker").rglob("*"))):
        relative = path.relative_to(product.module().parent)
        target = where / relative
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(target.name + ".dpkg-new")
        shutil.copy2(path, fresh)
        fresh.rename(target)


def mapped(pid: int, name: str) -> set[str]:
    """Files of that name in a process's memory, deleted ones marked."""
    lines = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(None, 5)[5] for line in lines if name in line}


@pytest.mark.on("event", "prefork")
@pytest.mark.everywhere
def test_package_upgrade(serve) -> None:
    """L6: all files of the package are replaced under load; a graceful restart has the new module, program and workers,
    and no request is lost."""
    one = serve(start=False)
    where = one.prefix / "lib"
    install(where)
    one.module = where / product.module().name
    one.plan(Plan("processes=2 threads=3"))
    one.start()
    wait_until(lambda: len(one.ready()) == 2)
    with Load(one.port, "/sleep?0.01", clients=4) as load:
        load.more(50)
        for _ in range(2):
            before = one.ready()
            (old,) = one.helpers("supervise")
            install(where)
            load.more(50)
            assert one.ready() == before, "until the restart nothing changes"
            one.graceful()
            wait_until(lambda old=old: [p for p in one.helpers("supervise") if p != old], 20, "the new program runs")
            wait_until(lambda b=before: len(one.ready()) == 2 and not one.ready() & b, 20, "new workers")
            (new,) = [p for p in one.helpers("supervise") if p != old]
            assert os.readlink(f"/proc/{new.pid}/exe") == str(where / "mod-wsgi-rs")
            assert not any("deleted" in m for m in mapped(one.pid, product.module().name))
            for pid in one.ready():
                assert mapped(pid, "_worker.abi3.so") == {str(where / "worker/_worker.abi3.so")}
            load.more(50)
    assert not load.bad, load.bad[:5]
    assert not one.log.find("MWR0301"), "an upgrade is no failure"


@pytest.mark.everywhere
@pytest.mark.parametrize("graceful", [False, True], ids=["stop", "graceful-stop"])
def test_stop_under_a_service_manager(serve, graceful: bool) -> None:
    """L6: KillMode=mixed: when the server's first process has ended everything else is killed: by then there is nothing
    left, and a graceful stop has finished its requests and the exit handlers."""
    one = server(serve, processes=2)
    # a connection that the stop breaks off is no answer
    slow = in_background(lambda: one.get("/sleep?2", timeout=20), ConnectionError)
    wait_until(lambda: any(w["running"] for w in one.workers()))
    workers = one.ready()
    one.snapshot()
    one.log.allow("MWR0207|AH00045|AH00052|upstream prematurely|shutdown")
    os.kill(one.pid, one.GRACEFUL_STOP if graceful else signal.SIGTERM)
    assert one.process
    one.process.wait(30)
    # the keeper's own end follows that of all it is for; killed there it leaves nothing but a name that the next one takes
    left = [p for p in one.leftovers() if not {"keeper", "supervise"} & set(p.cmdline)]
    assert not left, left
    wait_until(lambda: not one.leftovers(), 5, "keeper and supervisor have ended")
    told = {int(line.split()[0]) for line in (one.scratch / "stopping").read_text().splitlines()}
    assert told == workers
    if graceful:
        assert wait_until(lambda: slow, 5)[0].status == 200


def test_graceful_timeout(serve) -> None:
    """L4: a replaced worker's requests have this time and no more; alone, with every other at its default but the time
    of its exit handlers."""
    one = server(serve, "graceful-timeout=1 shutdown-timeout=0.5", processes=1)
    one.expect_log("MWR0207")
    (old,) = one.ready()
    stuck = in_background(lambda: one.get("/wait?never", timeout=30))
    wait_until(lambda: any(w["running"] for w in one.workers()))
    began = time.monotonic()
    one.ctl("reload", "g")
    assert wait_until(lambda: stuck, 15)[0].status == 502
    assert 0.9 < time.monotonic() - began < 8
    wait_until(lambda: old not in {w["pid"] for w in one.workers()}, 10)
    assert one.get("/").status == 200


def test_shutdown_timeout(serve) -> None:
    """L4, L10: an exit handler that hangs is cut off; those before it have run."""
    one = serve(Plan("processes=1 threads=3 shutdown-timeout=1"), start=False)
    text = (one.apps / "life.wsgi").read_text()
    hang = "\nimport atexit\natexit.register(time.sleep, 60)\natexit.register(note, 'exit', 'first')\n"
    one.write("life.wsgi", text + hang)
    one.start()
    (old,) = wait_until(one.ready)
    began = time.monotonic()
    one.ctl("reload", "g")
    wait_until(lambda: old not in {w["pid"] for w in one.workers()}, 10)
    assert 0.9 < time.monotonic() - began < 6
    assert (one.scratch / "exit").read_text() == "first\n"
    one.log.wait(rf"worker {old} of .* has ended")


def test_ctl_writes_nothing(serve) -> None:
    """L7: ctl needs no place to write: with no environment, in no directory of its own, and allowed no byte in a file."""
    one = server(serve, processes=1)
    directory = next(one.run.glob("**/ctl.sock")).parent

    def no_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    for words in (["status", "--json"], ["status"], ["stacks", "g"], ["log-level", "info"], ["scale", "g", "1"]):
        command = [str(product.binary()), "ctl", *words, "--run-directory", str(directory)]
        done = subprocess.run(
            command, env={}, cwd="/proc", preexec_fn=no_files, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (words, done.stderr)
        if "--json" in words:
            assert json.loads(done.stdout)["pools"]
    one.log.allow(r"  File |Thread 0x|Current thread|<no Python frame>|^$|most recent call")


def test_a_start_that_hangs_holds_nobody_up(serve) -> None:
    """L4, DESIGN 2: as many workers start at once as there are processors, over all groups; those of a group that hang
    in their starts do not keep another group from starting."""
    hung = {"hung": f"processes={2 * (os.cpu_count() or 1)} threads=1 startup-timeout=120"}
    plan = Plan("processes=1 threads=3", groups=hung, scripts={"/hung": Script("hung.wsgi", "hung")})
    one = serve(plan, start=False)
    one.write("hung.wsgi", "import time\ntime.sleep(1000)\n")
    one.start()
    wait_until(lambda: len(one.workers("hung")) >= (os.cpu_count() or 1), what="they start")
    one.ctl("restart", "g")
    assert one.get("/").status == 200
    assert not one.ready("hung")


#: reports scripts that there are not, with long names, from within the worker
REPORTER = """
import mod_wsgi_rs._worker as worker
def application(environ, start_response):
    for i in range(400):
        worker.loaded("/no/%d/" % i + "x" * 4000, "application", 1, None)
        worker.loaded("/no/%d" % i, "application", 1, "y" * 2000)
    body = b"told"
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_what_workers_report_is_bounded(serve) -> None:
    """F12: names of scripts without end: the supervisor keeps a part of them, stays connected to its keeper and does not
    grow; the group goes on."""
    one = serve(Plan("processes=1 threads=3", "reporter.wsgi"), start=False)
    one.write("reporter.wsgi", REPORTER)
    one.start()
    wait_until(one.ready)
    (supervisor,) = one.helpers("supervise")
    one.expect_log("MWR0323: group .g. has more scripts than are kept track of")
    before = procs.memory_kib(supervisor.pid)
    for _ in range(2):
        assert one.get("/", timeout=60).text == "told"
        one.log.wait("MWR0323", 20)
        assert one.ready()
    assert procs.memory_kib(supervisor.pid) < before + 64 * 1024
    assert json.loads(one.ctl("status", "--json"))["keeper"] and len(one.log.find("MWR0323")) == 1


#: what /proc/meminfo says is what stands in a file
FEW = 'mount --bind "$0" /proc/meminfo && exec "$@"'


@pytest.mark.root
def test_no_worker_beyond_memory(serve) -> None:
    """L13: no worker is added for which memory may not suffice (MWR0317), and one is once it does."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace can be made here")
    one = serve(
        Plan("processes=1..2 threads=1"), start=False, wrap=["unshare", "-m", "sh", "-c", FEW, "{scratch}/meminfo"]
    )
    meminfo = one.scratch / "meminfo"
    meminfo.write_text("MemAvailable: 4096 kB\n")
    one.start()
    wait_until(lambda: len(one.ready()) == 1)
    one.expect_log("MWR0317: .* gets no further worker beyond 1: 4 MiB of memory are left")
    with Load(one.port, "/sleep?0.1", clients=6) as load:
        one.log.wait("MWR0317", 15)
        load.more(20)
        assert len(one.ready()) == 1 and len(one.log.find("MWR0317")) == 1
        with meminfo.open("r+") as f:
            f.write("MemAvailable: 4194304 kB\n")
        wait_until(lambda: len(one.ready()) == 2, 15)
    assert not load.bad, load.bad[:5]
