"""Lanes (docs/protocol.md): many small requests on one connection, answers in REPLY frames, ADOPT for what is large."""

import os
import random
import resource
import struct
import subprocess
import threading
import time

import pytest

from worker import driver

ROWS = 32


@pytest.fixture
def start(newest):
    def start(**options):
        options = {"threads": 4, "rows": ROWS, **options}
        w = newest(preload=[(driver.ROUTES, "application")], **options)
        w.script = driver.ROUTES
        w.wait_ready()
        return w

    return start


@pytest.fixture
def lane(start):
    with driver.Lane(start()) as c:
        yield c


class Bundle:
    """Stands in for a lane's socket: what is sent goes out with one write."""

    def __init__(self, lane):
        self.lane, self.real, self.data = lane, lane.sock, b""

    def __enter__(self):
        self.lane.sock = self
        return self

    def __exit__(self, *_):
        self.lane.sock = self.real
        self.real.sendall(self.data)

    def sendall(self, data):
        self.data += data


def together(lane, *asked, **options):
    """Sends requests with one write; gives rows and generations."""
    with Bundle(lane):
        return [lane.post(path, **options) for path in asked]


def brisk(lane):
    """Brings the worker into the state in which one thread serves alone."""
    ended = time.monotonic() + 1
    while time.monotonic() < ended:
        for at in together(lane, *["/"] * ROWS):
            assert lane.answer(at).body == b"hello"
        wait_free(lane)


def wait_free(lane):
    for row in range(ROWS):
        lane.worker.table.wait_free(row)


@pytest.mark.parametrize("threads", [1, 4])
def test_many_at_once(start, threads):
    with driver.Lane(start(threads=threads)) as c:
        for _ in range(20):
            bodies = [os.urandom(random.randint(1, 2000)) for _ in range(ROWS)]
            with Bundle(c):
                ats = [c.post("/echo", body=b) for b in bodies]
            # whichever order they are asked for in
            for at, body in reversed(list(zip(ats, bodies, strict=True))):
                r = c.answer(at)
                assert r.body == body and r.frames == [driver.RESPONSE] and r.done
            wait_free(c)


def test_in_any_pieces(lane):
    """A lane's bytes may be cut anywhere."""
    rng = random.Random(3)
    for _ in range(30):
        with Bundle(lane) as bundle:
            bodies = [rng.randbytes(rng.randint(0, 3000)) for _ in range(8)]
            ats = [lane.post("/echo", body=b) for b in bodies]
            data, bundle.data = bundle.data, b""
        while data:
            n = rng.randint(1, 5000)
            lane.sock.sendall(data[:n])
            data = data[n:]
            if rng.random() < 0.3:
                time.sleep(0)
        assert [lane.answer(at).body for at in ats] == bodies
        wait_free(lane)


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_one_that_blocks_holds_up_nobody(lane, busy, behind):
    """Not those before it, whose answers a brisk phase bundles, and not those behind it, for which there are threads
    (their answers would take the others along)."""
    if busy:
        brisk(lane)
    for _ in range(3):
        paths = ["/", "/", "/sleep", *["/"] * behind]
        first, second, slow, *more = together(lane, *paths, environ={"QUERY_STRING": "1"})
        begun = time.monotonic()
        for at in (first, second, *more):
            assert lane.answer(at).body == b"hello"
        assert time.monotonic() - begun < 0.7
        assert lane.answer(slow).body == b"slept"
        wait_free(lane)
        if busy:
            brisk(lane)


def test_one_thread_answers_before_it_blocks(start):
    """With one serving thread another one sends what it holds back."""
    with driver.Lane(start(threads=1)) as c:
        for _ in range(3):
            brisk(c)
            first, second, slow = together(c, "/", "/", "/sleep", environ={"QUERY_STRING": "1"})
            begun = time.monotonic()
            assert c.answer(first).body == b"hello" and c.answer(second).body == b"hello"
            assert time.monotonic() - begun < 0.7
            assert c.answer(slow).body == b"slept"
            wait_free(c)


def test_events_come_one_by_one(lane):
    """R16: what the application yields is sent when it pauses."""
    at = lane.post("/slow_stream")
    lane.pump()
    first = time.monotonic()
    r = lane.answer(at)
    # it sleeps for 0.3 s between the two
    assert time.monotonic() - first > 0.2
    assert r.body == b"firstsecond" and r.frames[:2] == [driver.RESPONSE, driver.DATA] and at not in lane.adopted


@pytest.mark.parametrize("again", [False, True])
def test_a_large_answer_gets_a_connection(lane, again):
    """The first of it too; and the connection then carries requests of its own."""
    at = lane.post("/big")
    r = lane.answer(at)
    assert r.body == b"a" * 100_000 + b"b" * 200_000 + b"c" and r.done
    wait_free(lane)
    own = lane.adopted[at]
    assert not lane.inboxes.get(at)
    if again:
        for _ in range(3):
            assert own.request("/echo", body=b"x" * 50_000).body == b"x" * 50_000
    # the lane goes on beside it
    assert lane.request("/").body == b"hello"


def test_a_stream_alights_in_the_middle(lane):
    """Small parts ride, and in their order before the rest."""
    at = lane.post("/endless")
    while at not in lane.adopted:
        lane.pump()
    own = lane.adopted[at]
    kind, _, payload = own.frame()
    assert kind in (driver.RESPONSE, driver.DATA) and len(payload) <= 70_000
    own.sock.close()
    own.sock = own.worker.connect().sock
    # its end is noticed, as on any connection
    lane.worker.table.wait_free(at[0])
    assert lane.request("/").body == b"hello"


def test_a_stream_of_small_parts_gets_a_connection(lane):
    """On the lane its application would not learn that the client has left."""
    at = lane.post("/ticks")
    driver.wait_for(lambda: lane.pump() or at in lane.adopted, "a connection")
    lane.adopted[at].sock.close()
    lane.worker.table.wait_free(at[0])
    assert lane.request("/").body == b"hello"


def test_a_file(lane, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_000))
    at = lane.post("/file", environ={"QUERY_STRING": str(path)})
    r = lane.answer(at)
    assert r.file == (3, 99_997) and r.body == path.read_bytes()[3:]
    at = lane.post("/file", environ={"QUERY_STRING": str(path)}, no_file=True)
    r = lane.answer(at)
    assert r.file is None and r.body == path.read_bytes()[3:]


def test_records_are_tied_to_their_request(lane):
    one, two = together(lane, "/logs", "/")
    r = lane.answer(one)
    assert "to stderr" in r.log_text and "logged critical" in r.log_text and r.status == 200
    assert lane.answer(two).logs == []


def test_many_records_get_a_connection(lane):
    """Nothing of a lane waits for records that the server does not read; none of these is lost as long as it reads."""
    at = lane.post("/flood")
    r = lane.answer(at)
    said = [text for _, text in r.logs]
    dropped = [text for text in said if "MWR0427" in text]
    assert at in lane.adopted and r.body == b"done"
    assert len([t for t in said if t.startswith("flood")]) == 20_000 or dropped
    assert lane.request("/").body == b"hello"


def test_a_recalled_request_is_dropped(lane):
    table = lane.worker.table
    generation = table.take(5, lane.client)
    table.recall(5)
    gone = lane.post("/", row=5, row_generation=generation)
    at = lane.post("/", row=6)
    assert lane.answer(at).body == b"hello"
    assert gone not in lane.inboxes
    # the row is good for the next one
    assert lane.answer(lane.post("/", row=5)).body == b"hello"


def test_an_error_and_an_exit(lane):
    for path, reason in (("/boom", driver.APPLICATION), ("/not_iterable", driver.PROTOCOL)):
        r = lane.answer(lane.post(path))
        assert r.abort == reason and r.done
        wait_free(lane)
    at = lane.post("/late_boom")
    r = lane.answer(at)
    assert r.abort == driver.APPLICATION


def test_a_request_that_takes_too_long(start):
    """It gets ABORT; the others of its lane go on."""
    with driver.Lane(start(request_timeout=0.5)) as c:
        slow, quick = together(c, "/sleep", "/", environ={"QUERY_STRING": "3"})
        assert c.answer(quick).body == b"hello"
        aborted = struct.pack("<IBBHB", 1, driver.ABORT, 0, 0, driver.TIMEOUT)
        while not c.inboxes.get(slow, b"").endswith(aborted):
            c.pump()
        assert c.answer(c.post("/")).body == b"hello"


def test_a_server_that_does_not_read(lane):
    """Answers that its socket does not take wait, and come when there is room, whoever else sends meanwhile."""
    body = os.urandom(15_000)
    for _ in range(3):
        ats = [lane.post("/echo", body=body) for _ in range(ROWS)]
        # all have been served: their rows are free, and what the socket did not take waits in the worker
        wait_free(lane)
        for at in ats:
            assert lane.answer(at).body == body


def test_a_server_that_never_reads(lane):
    """The worker reads from it only as long as it can keep the answers."""
    body, posted = os.urandom(15_000), []
    lane.sock.settimeout(3)
    with pytest.raises(TimeoutError):
        for i in range(1000):
            lane.worker.table.wait_free(i % ROWS)
            posted.append(lane.post("/echo", body=body, row=i % ROWS))
    assert 32 < len(posted) < 200
    lane.sock.settimeout(driver.DEADLINE)
    for at in posted:
        assert lane.answer(at).body == body
    # of the last one a part has been sent
    assert lane.worker.get("/", row=(len(posted) + 1) % ROWS).body == b"hello"


def test_the_end_waits_for_answers(lane):
    """Those that the socket has not taken yet."""
    process, body = lane.worker.process, os.urandom(15_000)
    ats = [lane.post("/echo", body=body) for _ in range(ROWS)]
    wait_free(lane)
    lane.worker.tell(op="exit", timeout=20, reason="shutdown_signal")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    for at in ats:
        assert lane.answer(at).body == body
    assert process.wait(10) == 0


@pytest.mark.long
def test_a_lane_in_use_is_not_idle(start):
    """Connections that are idle for 60 s are closed when there are many; this one has a request each second."""
    worker = start(threads=1)
    with driver.Lane(worker) as c:
        c.request("/")
        others = [worker.connect() for _ in range(4)]
        for _ in range(65):
            assert c.request("/").body == b"hello"
            time.sleep(1)
        assert others[0].closed()
        for other in others:
            other.sock.close()


def test_a_server_that_leaves(start):
    """Whatever rides then; no descriptor stays."""
    worker = start()

    def count():
        return len(os.listdir(f"/proc/{worker.process.pid}/fd"))

    with driver.Lane(worker) as c:
        c.request("/")
    with worker.connect() as c:
        c.request("/")
    driver.wait_for(lambda: worker.table.running == 0, "no request")
    before = count()
    rng = random.Random(5)
    for _ in range(40):
        c = driver.Lane(worker, client=3)
        asked = rng.choices(["/", "/big", "/stream", "/waits", "/logs"], k=rng.randint(1, 8))
        together(c, *asked)
        if rng.random() < 0.6:
            c.pump()
        c.__exit__()
        for row in range(ROWS):
            # what was not begun is the supervisor's to free
            driver.wait_for(lambda row=row: worker.table.state(row) in (driver.FREE, driver.SENT), "no row runs")
            if worker.table.state(row) == driver.SENT:
                worker.table.recall(row)
    driver.wait_for(lambda: count() <= before, "descriptors as before")
    assert worker.get("/").body == b"hello"


def test_threads_race(start):
    """Several lanes, several threads on each, everything in it: each gets its own answer."""
    worker = start(rows=ROWS)
    faults = []

    def client(number):
        rng = random.Random(number)
        try:
            with driver.Lane(worker, client=number + 1) as c:
                rows = range(number * 8, number * 8 + 8)
                for _ in range(60):
                    asked = []
                    with Bundle(c):
                        for row in rows:
                            body = rng.randbytes(rng.choice((1, 500, 3000)))
                            path = rng.choice(("/echo", "/echo", "/echo", "/waits", "/big"))
                            asked.append((c.post(path, body=body, row=row), path, body))
                    for at, path, body in asked:
                        r = c.answer(at)
                        assert r.status == 200 and r.done
                        if path == "/echo":
                            assert r.body == body
                        worker.table.wait_free(at[0])
        except BaseException as e:
            faults.append(repr(e))

    clients = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for t in clients:
        t.start()
    for t in clients:
        t.join(120)
    assert not any(t.is_alive() for t in clients) and not faults, faults


def test_no_descriptor_is_left(lane):
    """An answer that needs a connection fails with a word to the server; small ones go on."""
    pid = lane.worker.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    at = lane.post("/big")
    aborted = struct.pack("<IBBHB", 1, driver.ABORT, 0, 0, driver.INTERNAL)
    while not lane.inboxes.get(at, b"").endswith(aborted):
        lane.pump()
    assert lane.worker.wait_log("MWR0425")
    wait_free(lane)
    assert lane.request("/").body == b"hello"
    # of many records some are lost, and nothing else
    r = lane.answer(lane.post("/flood"))
    assert r.body == b"done" and r.abort is None and "MWR0427" in r.log_text
    wait_free(lane)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert lane.answer(lane.post("/big")).done


def test_no_high_descriptor_is_left(lane):
    """The same where there are descriptors, but none that the application's select(2) does not need."""
    resource.prlimit(lane.worker.process.pid, resource.RLIMIT_NOFILE, (200, 200))
    at = lane.post("/big")
    aborted = struct.pack("<IBBHB", 1, driver.ABORT, 0, 0, driver.INTERNAL)
    while not lane.inboxes.get(at, b"").endswith(aborted):
        lane.pump()
    wait_free(lane)
    assert lane.request("/").body == b"hello"


BAD = {
    "request-without-the-flag": lambda c: driver.Client.post(_plain(c), "/", row=9),
    "other-frame": lambda c: c.send(driver.BODY, b"x"),
    "garbage": lambda c: c.sock.sendall(b"GET / HTTP/1.1\r\n\r\n"),
    "too-large": lambda c: c.post("/echo", body=b"x" * 17_000, row=9),
    "descriptor": lambda c: c.send(driver.REQUEST, b"\0" * 40, driver.F_LANE, [0]),
    "descriptor-flag": lambda c: c.send(driver.REQUEST, b"\0" * 40, driver.F_LANE | driver.F_BODY_FD, [0]),
    "stream-flag": lambda c: c.send(driver.REQUEST, b"\0" * 40, driver.F_LANE | driver.F_BODY_STREAM),
    "malformed": lambda c: c.send(driver.REQUEST, b"\xff" * 40, driver.F_LANE),
}


def _plain(c):
    c.lane = False
    return c


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("used", [False, True])
def test_what_is_no_lane(lane, name, used):
    """The connection is closed, with a line in the log; the worker goes on."""
    if used or name in ("request-without-the-flag", "other-frame"):
        lane.request("/")
    BAD[name](lane)
    assert lane.closed()
    assert lane.worker.wait_log("MWR0423")
    with driver.Lane(lane.worker) as other:
        assert other.request("/", row=3).body == b"hello"
