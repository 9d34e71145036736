"""One worker as a process: rows, threads, forks, scripts, interpreters, its end."""

import ast
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from worker import bench, driver

Worker, wait_for = driver.Worker, driver.wait_for

ROUTES = driver.ROUTES


# --- rows ---------------------------------------------------------------------------------------------------------


def test_recalled_request_is_dropped(worker):
    table = worker.table
    with worker.connect() as c:
        generation = table.take(5)
        table.recall(5)
        c.post("/boom", row=5, row_generation=generation)
        assert not driver.readable(c.sock, 0.3)
        assert c.request("/").body == b"hello"
    assert table.requests == 1


def test_request_of_another_slot_generation_is_dropped(worker):
    with worker.connect() as c:
        c.post("/boom", generation=2)
        assert not driver.readable(c.sock, 0.3)


def test_requests_wait_in_the_socket(worker):
    clients = [worker.connect() for _ in range(6)]
    for c in clients:
        c.post("/sleep", environ={"QUERY_STRING": "0.2"})
    wait_for(lambda: worker.table.running == 2, "two requests to run")
    assert [worker.table.state(r) for r in range(6)].count(driver.SENT) == 4
    for c in clients:
        with c:
            assert c.response().body == b"slept"
    wait_for(lambda: worker.table.requests == 6 and worker.table.running == 0, "six requests")


def test_rows_close_while_draining(worker):
    with worker.connect() as c:
        row = c.post("/sleep")
        wait_for(lambda: worker.table.state(row) == driver.RUNNING, "the claim")
        worker.table.set_state(driver.DRAINING)
        assert c.response().body == b"slept"
        wait_for(lambda: worker.table.state(row) == driver.CLOSED, "the row to close")


def test_heartbeat_while_the_gil_is_held(worker):
    with worker.connect() as c:
        c.post("/stuck", environ={"QUERY_STRING": "4000000000"})
        wait_for(lambda: worker.table.running == 1, "the claim")
        before = worker.table.heartbeat
        wait_for(lambda: worker.table.heartbeat >= before + 2, "two beats")
        worker.process.send_signal(signal.SIGRTMIN + 5)
        wait_for(lambda: "in stuck" in worker.stderr(), "the stacks of a thread that keeps the GIL")


def test_a_frame_that_fills_the_read_hides_nothing(worker):
    """Events are edge-triggered: what came together with a request is looked at although nothing more comes."""
    received = 8 * 1024

    class Recorder:
        def sendall(self, data):
            self.data = data

    with worker.connect() as c:
        sock, c.sock = c.sock, Recorder()
        first = worker.table.rows - 2
        c.post(row=first, row_generation=1, environ={"QUERY_STRING": ""})
        pad = received - len(c.sock.data)
        c.post(row=first, environ={"QUERY_STRING": "x" * pad})
        data = c.sock.data
        assert len(data) == received
        c.post(row=first + 1)
        data += c.sock.data
        c.sock = sock
        sock.sendall(data)
        assert [c.response().body for _ in range(2)] == [b"hello", b"hello"]


def test_connections_whose_peer_has_left_are_closed(worker):
    """A peer that sends a request and leaves before it is looked at: one event tells of both."""
    fds = Path(f"/proc/{worker.process.pid}/fd")
    with worker.connect() as a, worker.connect() as b:
        assert a.request("/").body == b.request("/").body == b"hello"
        before = len(list(fds.iterdir()))
        leaving = [worker.connect() for _ in range(4)]
        for c in (a, b):
            c.post("/sleep", environ={"QUERY_STRING": "0.5"})
        wait_for(lambda: worker.table.running == 2, "both threads to be busy")
        for c in leaving:
            c.post("/")
            c.sock.close()
        for c in (a, b):
            assert c.response().body == b"slept"
        wait_for(lambda: worker.table.requests == 8 and worker.table.running == 0, "all requests")
        wait_for(lambda: len(list(fds.iterdir())) <= before, "the connections to be closed")


# --- threads ------------------------------------------------------------------------------------------------------


def test_thread_locals_survive(worker):
    seen = {}
    for _ in range(20):
        name, n = worker.get("/count").body.decode().split()
        assert int(n) == seen.get(name, 0) + 1
        seen[name] = int(n)
    assert set(seen) <= {"wsgi-0-0", "wsgi-0-1"}


@contextlib.contextmanager
def saturated(w):
    """Hello over 32 connections from another process."""
    code = f"""
import sys
sys.path.insert(0, {str(driver.ROOT / "tests")!r})
from worker.load import saturate
saturate({w.table.fd}, {w.table.slots}, {w.table.rows}, {str(w.address)!r}, {w.token.hex()!r}, {str(ROUTES)!r}, 32)
"""
    load = subprocess.Popen([sys.executable, "-c", code], pass_fds=[w.table.fd], stdin=subprocess.PIPE)
    try:
        before = w.table.requests
        wait_for(lambda: w.table.requests > before + 2000, "the load")
        yield
    finally:
        load.kill()
        load.wait()


def test_short_waits_beside_a_saturated_worker(python, tmp_path):
    """A request with 20 waits of 0.2 ms takes at most 10 times its idle time (R17)."""
    with Worker(tmp_path, python=python, preload=[(ROUTES, "application")], threads=5, rows=64) as w:
        w.script = ROUTES
        w.wait_ready()

        def measure(row, n):
            times = []
            with w.connect() as c:
                for _ in range(n):
                    begun = time.perf_counter()
                    c.request("/waits", row=row)
                    times.append(time.perf_counter() - begun)
            return sorted(times)[n // 2]

        idle = measure(63, 10)
        with saturated(w):
            busy = measure(63, 15)
        assert busy <= 10 * idle, f"{busy * 1e3:.1f} ms beside hello, {idle * 1e3:.1f} ms idle"


# --- forks --------------------------------------------------------------------------------------------------------


def test_child_that_returns_does_not_answer(worker):
    with worker.connect() as c:
        assert c.request("/fork_returns").body == b"parent"
        assert not driver.readable(c.sock, 0.2)
        assert c.request("/").body == b"hello"


def test_child_that_returns_an_iterator_or_raises_does_not_answer(worker):
    with worker.connect() as c:
        for path in ("/fork_iterates", "/fork_raises"):
            r = c.request(path)
            assert r.body == b"parent" and r.frames.count(driver.RESPONSE) == 1 and not r.abort
            assert not driver.readable(c.sock, 0.2)
        assert c.request("/").body == b"hello"
    assert worker.table.requests == 3


def test_output_of_a_child_goes_to_its_own_descriptor(worker):
    worker.get("/fork_prints")
    wait_for(lambda: "child to stdout\nchild to stderr" in worker.stderr(), "the child's output")
    assert not worker.of("log")


def test_child_holds_nothing_of_ours(worker):
    assert worker.get("/fork_lists").body == b"[]"
    listing = worker.get("/subprocess_lists").body.decode()
    assert "socket:" not in listing and "memfd" not in listing and "epoll" not in listing


def test_killed_worker_with_a_living_child(worker):
    with worker.connect() as c:
        c.post("/fork_sleeps")
        child = int(c.frame()[2][-8:].split(b"K")[-1])
        try:
            worker.process.kill()
            begun = time.monotonic()
            assert c.closed()
            assert time.monotonic() - begun < 1
        finally:
            os.kill(child, signal.SIGKILL)


def test_signals_of_a_child_that_begins(worker):
    """R18: what ends a child of the application ends it from its first moment; nothing of the worker's takes the signal."""
    assert worker.get("/fork_ended").body == b"0"
    # and the worker still hears its own
    worker.process.terminate()
    assert worker.process.wait(20) == 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(worker, method):
    assert worker.get("/multi", environ={"QUERY_STRING": method}).body == b"[1, 2, 3]"
    assert worker.get("/executor", environ={"QUERY_STRING": method}).body == b"7"
    assert len(worker.of("ready")) == 1


# --- scripts ------------------------------------------------------------------------------------------------------


def test_script_that_cannot_be_loaded(worker, tmp_path):
    script = tmp_path / "broken.wsgi"
    script.write_text("import does_not_exist\n")
    r = worker.get("/", script=script)
    assert r.abort == driver.LOAD and "MWR0433" in r.log_text
    assert "ModuleNotFoundError: No module named 'does_not_exist'" in r.log_text
    assert "mod_wsgi_rs" not in r.log_text
    assert worker.get("/", script=script).logs == []
    assert "does_not_exist" in wait_for(lambda: [m for m in worker.of("loaded") if m["error"]], "loaded")[0]["error"]
    time.sleep(1.1)
    r = worker.get("/", script=script)
    assert r.abort == driver.LOAD and len(r.logs) == 1 and "still" in r.log_text
    script.write_text("def application(e, s):\n    s('200 OK', [])\n    return [b'mended']\n")
    time.sleep(1.1)
    assert worker.get("/", script=script).body == b"mended"


def test_missing_and_unusable_callables(worker):
    r = worker.get("/", callable="absent")
    assert r.abort == driver.LOAD and "MWR0434" in r.log_text and "'absent'" in r.log_text
    r = worker.get("/", callable="number")
    assert r.abort == driver.LOAD and "MWR0435" in r.log_text and "int" in r.log_text
    assert worker.get("/", callable="other").body == b"hello"


def test_missing_script(worker, tmp_path):
    r = worker.get("/", script=tmp_path / "absent.wsgi")
    assert r.abort == driver.LOAD and "FileNotFoundError" in r.log_text


def test_encoding_cookie_and_syntax_error(worker, tmp_path):
    script = tmp_path / "latin.wsgi"
    text = "# -*- coding: latin-1 -*-\ndef application(e, s):\n    s('200 OK', [])\n    return ['\u00e9'.encode()]\n"
    script.write_bytes(text.encode("latin-1"))
    assert worker.get("/", script=script).body == "\u00e9".encode()
    script = tmp_path / "syntax.wsgi"
    script.write_text("def application(:\n")
    r = worker.get("/", script=script)
    assert r.abort == driver.LOAD and "SyntaxError" in r.log_text and "syntax.wsgi" in r.log_text


def test_touched_script_is_reported_once(worker, tmp_path):
    script = tmp_path / "touched.wsgi"
    script.write_text("def application(e, s):\n    s('200 OK', [])\n    return [__name__.encode()]\n")
    body = worker.get("/", script=script).body.decode()
    assert body.startswith("_mod_wsgi_") and len(body) == 42
    mtime = script.stat().st_mtime_ns // 1000
    worker.get("/", script=script, mtime=mtime)
    assert not worker.of("touched")
    for _ in range(3):
        worker.get("/", script=script, mtime=mtime + 5)
    worker.get("/", script=script, mtime=mtime + 9)
    wait_for(lambda: len(worker.of("touched")) >= 2, "reports")
    assert [m["mtime"] for m in worker.of("touched")] == [mtime + 5, mtime + 9]


def test_module_instead_of_a_script(newest, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "pack.py").write_text(
        "class A:\n    @staticmethod\n    def app(e, s):\n        s('200 OK', [])\n        return [b'module']\n"
    )
    w = newest(preload=[("pack", "A.app")], python_path=[str(tmp_path / "lib")])
    w.wait_ready()
    assert w.get("/", script="pack", callable="A.app").body == b"module"
    assert w.of("loaded")[0]["error"] is None


def test_failing_preload_still_answers(newest, tmp_path):
    script = tmp_path / "bad.wsgi"
    script.write_text("raise RuntimeError('not yet')\n")
    w = newest(preload=[(script, "application")])
    w.wait_ready()
    assert "not yet" in w.of("loaded")[0]["error"]
    w.wait_log("RuntimeError: not yet")
    time.sleep(1.1)
    script.write_text("def application(e, s):\n    s('200 OK', [])\n    return [b'now']\n")
    assert w.get("/", script=script).body == b"now"


# --- the process --------------------------------------------------------------------------------------------------


def test_main_module_and_paths(python, tmp_path):
    (tmp_path / "home").mkdir()
    site = tmp_path / "site"
    site.mkdir()
    (tmp_path / "linked").mkdir()
    (site / "x.pth").write_text(str(tmp_path / "linked") + "\n")
    with Worker(tmp_path, python=python, home=str(tmp_path / "home"), python_path=[str(site)]) as w:
        w.wait_ready()
        body = w.get("/main_module", script=ROUTES).body.decode()
    has_file, spec, argv, path, variable = ast.literal_eval(body)
    assert (has_file, spec, argv, variable) == (False, None, ["mod_wsgi"], False)
    assert path[:3] == [str(tmp_path / "home"), str(site), str(tmp_path / "linked")]
    assert "" not in path and str(w.files) not in path


def test_worker_files_with_unchecked_bytecode(python, tmp_path):
    files = driver.worker_files(tmp_path / "worker")
    subprocess.run([python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", files], check=True)
    with Worker(tmp_path, python=python, files=files) as w:
        w.wait_ready()
        assert w.get("/", script=ROUTES).body == b"hello"


@pytest.mark.parametrize("how", ["--symlinks", "--copies", "--system-site-packages"])
def test_virtual_environment(python, tmp_path, how):
    subprocess.run([python, "-m", "venv", "--without-pip", how, tmp_path / "venv"], check=True)
    own = tmp_path / "venv" / "bin" / "python"
    with Worker(tmp_path, python=own) as w:
        w.wait_ready()
        found = ast.literal_eval(w.get("/prefix", script=ROUTES).body.decode())
    assert found == (str(tmp_path / "venv"), str(own))


@pytest.mark.root
def test_files_that_the_user_cannot_reach(tmp_path):
    """The clone of a root user lies below a directory that is closed to the worker's user."""
    if os.geteuid():
        pytest.skip("needs root to become another user")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    files = driver.worker_files(closed / "worker")
    tmp_path.chmod(0o755)
    script = tmp_path / "routes.wsgi"
    script.write_bytes(ROUTES.read_bytes())
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    with Worker(tmp_path, python="/usr/bin/python3", files=files, user=65534) as w:
        w.wait_ready()
        assert w.get("/", script=script).body == b"hello"
        assert "MWR0430" in w.get("/boom", script=script).log_text


def test_mod_wsgi_module(shared_worker):
    found = ast.literal_eval(shared_worker.get("/api").body.decode())
    assert found["version"] >= (6, 0) and found["group"] == "test" and found["threads"] == 2
    assert {"mine": 1} in found["data"] and found["wrapper"] and found["timeout"]


def test_package_mod_wsgi_of_pypi(python, tmp_path):
    package = tmp_path / "lib" / "mod_wsgi"
    (package / "server").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('never imported')\n")
    (package / "server" / "__init__.py").write_text("NAME = 'theirs'\n")
    script = tmp_path / "both.wsgi"
    script.write_text(
        "import mod_wsgi, mod_wsgi.server\n"
        "def application(e, s):\n    s('200 OK', [])\n"
        "    return [(mod_wsgi.server.NAME + mod_wsgi.process_group).encode()]\n"
    )
    with Worker(tmp_path, python=python, python_path=[str(tmp_path / "lib")]) as w:
        w.wait_ready()
        assert w.get("/", script=script).body == b"theirstest"


def test_events(worker):
    worker.get("/subscribe")
    r = worker.get("/env")
    assert "'wrapped': 'yes'" in r.body.decode()
    assert r.logs[0][1].startswith("event request_started")
    # After DONE: it belongs to no request any more.
    assert "event request_finished 200" in worker.wait_log("event request_finished")["text"]
    r = worker.get("/boom")
    assert "event request_exception" in r.log_text


def test_exit_sequence(worker, tmp_path):
    notes = tmp_path / "notes"
    worker.get("/late_work", environ={"QUERY_STRING": str(notes)})
    assert worker.exit(reason="maximum_requests") == 0
    assert notes.read_text().splitlines() == ["process_stopping maximum_requests", "job", "atexit"]


def test_terminate_signal_runs_the_exit_sequence(worker, tmp_path):
    notes = tmp_path / "notes"
    worker.get("/late_work", environ={"QUERY_STRING": str(notes)})
    with worker.connect() as c:
        c.post("/sleep", environ={"QUERY_STRING": "0.3"})
        wait_for(lambda: worker.table.running == 1, "the claim")
        worker.process.terminate()
        assert c.response().body == b"slept"
    assert worker.process.wait(10) == 0
    assert "atexit" in notes.read_text()


def test_requests_during_the_exit_are_sent_back(worker):
    with worker.connect() as busy, worker.connect() as c:
        busy.post("/sleep", environ={"QUERY_STRING": "0.5"})
        wait_for(lambda: worker.table.running == 1, "the claim")
        worker.tell(op="exit", timeout=5.0, reason="x")
        wait_for(lambda: c.request("/").abort == driver.NOT_RUN, "a request to be sent back")
        assert busy.response().body == b"slept"
    assert worker.process.wait(10) == 0


def test_exit_deadline(worker):
    with worker.connect() as c:
        c.post("/stuck", environ={"QUERY_STRING": "4000000000"})
        wait_for(lambda: worker.table.running == 1, "the claim")
        begun = time.monotonic()
        assert worker.exit(timeout=0.5) == 1
        assert time.monotonic() - begun < 2


def test_orphan_ends(newest):
    w = newest(orphan_timeout=0.5)
    w.wait_ready()
    w.control.shutdown(2)
    assert w.process.wait(10) == 0


def test_hangup_and_display_name(newest):
    w = newest(display_name="(wsgi:test)")
    w.wait_ready()
    w.process.send_signal(signal.SIGHUP)
    assert w.get("/", script=ROUTES).body == b"hello"
    line = Path(f"/proc/{w.process.pid}/cmdline").read_bytes()
    assert line.rstrip(b"\0") == b"(wsgi:test)"
    assert Path(f"/proc/{w.process.pid}/comm").read_text().strip() == "(wsgi:test)"


def test_unusable_plan(newest):
    w = newest(token="short")
    assert w.process.wait(20) == 1
    assert w.stderr().startswith("MWR0408: ") and len(w.stderr().splitlines()) == 1


def test_memory(python, tmp_path):
    """A hello worker takes at most 4 MiB more than a bare interpreter (R25)."""
    if "debug" in driver.extension().parts:
        pytest.skip("only a release build is that small")
    with Worker(tmp_path, python=python, preload=[(ROUTES.with_name("hello.wsgi"), "application")], threads=15) as w:
        w.wait_ready()
        assert w.get("/", script=ROUTES.with_name("hello.wsgi")).body == b"Hello, world!"
        bare = subprocess.Popen([python, "-c", "print(1, flush=True); input()"], stdin=-1, stdout=-1)
        bare.stdout.readline()
        ours, theirs = bench.pss(w.process.pid), bench.pss(bare.pid)
        bare.communicate(b"\n")
    assert ours - theirs <= 4096, f"{ours} KiB against {theirs} KiB"


def test_descriptors_are_high_and_not_inherited(worker):
    low = []
    for n in os.listdir(f"/proc/{worker.process.pid}/fd"):
        target = os.readlink(f"/proc/{worker.process.pid}/fd/{n}")
        if int(n) > 2 and int(n) < 1024:
            low.append((n, target))
    assert low == []


def test_old_interpreter_is_refused(tmp_path):
    old = sorted(Path.home().glob(".pyenv/versions/3.[6789].*/bin/python"))
    if not old:
        pytest.skip("no CPython older than 3.10 is installed here")
    for python in old:
        root = tmp_path / python.parts[-3]
        root.mkdir()
        with Worker(root, python=python) as w:
            assert w.process.wait(20) == 1
            assert w.stderr().startswith("MWR0402: this is CPython 3.") and str(python) in w.stderr()


def test_kill_during_requests_leaves_rows_to_judge(worker):
    """A killed worker: what ran stays RUNNING, what waited can be recalled."""
    clients = [worker.connect() for _ in range(3)]
    rows = [c.post("/sleep", environ={"QUERY_STRING": "5"}) for c in clients]
    wait_for(lambda: worker.table.running == 2, "two claims")
    worker.process.kill()
    assert all(c.closed() for c in clients)
    assert sorted(worker.table.state(r) for r in rows) == [driver.SENT, driver.RUNNING, driver.RUNNING]


def test_many_clients_at_once(shared_worker):
    errors = []

    def run(row):
        try:
            with shared_worker.connect() as c:
                for i in range(50):
                    body = b"%d-%d" % (row, i)
                    assert c.request("/echo", body=body, row=row).body == body
        except BaseException as e:
            errors.append(e)

    wait_for(lambda: all(shared_worker.table.state(r) == driver.FREE for r in range(16)), "free rows")
    threads = [threading.Thread(target=run, args=(r,)) for r in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
