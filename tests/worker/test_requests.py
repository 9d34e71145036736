"""Requests and responses of one worker: WSGI, frames, failures, files, logs, hostile peers."""

import ast
import os
import struct
import time

import pytest

from worker import driver

Worker, wait_for = driver.Worker, driver.wait_for

ROUTES = driver.ROUTES


# --- requests and responses ---------------------------------------------------------------------------------------


def test_hello_is_one_frame(shared_worker):
    r = shared_worker.get("/")
    assert (r.status, r.reason, r.body) == (200, b"OK", b"hello")
    assert r.headers == [("Content-Type", "text/plain")]
    assert r.frames == [driver.RESPONSE] and r.ended and r.done


def test_one_connection_carries_many_requests(shared_worker):
    with shared_worker.connect() as c:
        assert c.hello == (driver.VERSION, 0, 1)
        for _ in range(50):
            assert c.request("/").body == b"hello"


def test_inline_body(shared_worker):
    assert shared_worker.get("/echo", body=b"some\0bytes").body == b"some\0bytes"
    assert shared_worker.get("/echo").body == b""
    big = os.urandom(60_000)
    assert shared_worker.get("/echo", body=big).body == big


def test_body_by_descriptor(shared_worker, tmp_path):
    data = os.urandom(1_000_000)
    path = tmp_path / "body"
    path.write_bytes(data)
    with open(path, "rb") as f:
        r = shared_worker.get("/echo", body_fd=f.fileno())
    assert r.body == data and r.header("X-Length") == ["1000000"]


@pytest.mark.parametrize("how", ["inline", "descriptor", "stream"])
def test_reading_by_lines(shared_worker, tmp_path, how):
    data = b"one\nlonger\na\nb\nc\nlast"
    expected = [b"", b"one\n", b"lo", b"nger\n", b"|", b"a\n", b"b\n", b"c\n", b"last"]
    if how == "inline":
        body = shared_worker.get("/lines", body=data).body
    elif how == "descriptor":
        (tmp_path / "b").write_bytes(data)
        with open(tmp_path / "b", "rb") as f:
            body = shared_worker.get("/lines", body_fd=f.fileno()).body
    else:
        with shared_worker.connect() as c:
            row = c.post("/lines", stream=True)
            assert c.frame()[0] == driver.CONTINUE
            for i in range(0, len(data), 4):
                c.send(driver.BODY, data[i : i + 4])
            c.send(driver.BODY_END)
            body = c.response().body
            shared_worker.table.wait_free(row)
    assert ast.literal_eval(body.decode()) == expected


def test_streaming_both_ways(shared_worker):
    with shared_worker.connect() as c:
        c.post("/two_reads", stream=True)
        assert c.frame()[0] == driver.CONTINUE
        c.send(driver.BODY, b"abcdefg")
        kind, _, payload = c.frame()
        assert kind == driver.RESPONSE and payload.endswith(b"[abc]")
        assert c.frame()[2] == b"[defg]"
        c.send(driver.BODY, b"hi")
        c.send(driver.BODY_END)
        assert c.response().body == b"[hi]"
        assert c.request("/").body == b"hello"


def test_streamed_body_that_is_not_read(shared_worker):
    with shared_worker.connect() as c:
        c.post("/early", stream=True)
        c.send(driver.BODY, b"abc")
        assert c.response().body == b"not read"
        c.send(driver.BODY, b"def")
        c.send(driver.BODY_END)
        assert c.request("/").body == b"hello"


def test_client_gone_while_the_body_is_read(worker):
    with worker.connect() as c:
        row = c.post("/echo", stream=True)
        assert c.frame()[0] == driver.CONTINUE
        c.send(driver.BODY, b"abc")
    worker.table.wait_free(row)
    assert "OSError" in worker.wait_log("OSError")["text"]
    assert worker.get("/").body == b"hello"


def test_malformed_frame_in_a_streamed_body(worker):
    with worker.connect() as c:
        row = c.post("/echo", stream=True)
        assert c.frame()[0] == driver.CONTINUE
        c.send(driver.DONE)
        assert c.closed()
        worker.table.wait_free(row)
    assert worker.get("/").body == b"hello"


def test_environ(shared_worker):
    environ = {
        "HTTP_X_NAME": b"caf\xc3\xa9",
        "HTTP_COOKIE": "a=b",
        "SSL_SERVER": "x",
        "DOCUMENT_ROOT": "/s\xc3\xbc".encode("latin-1"),
    }
    body = shared_worker.get("/env", environ=environ).body
    e = ast.literal_eval(body.decode("utf-8", "surrogateescape"))
    assert e["HTTP_X_NAME"] == "caf\u00c3\u00a9"
    assert (e["HTTP_COOKIE"], e["SSL_SERVER"]) == ("a=b", "x")
    assert e["DOCUMENT_ROOT"] in ("/s\u00fc", "/s\udcc3\udcbc")
    assert e["wsgi.version"] == (1, 0) and e["wsgi.url_scheme"] == "http"
    assert e["wsgi.multithread"] is True and e["wsgi.multiprocess"] is False and e["wsgi.run_once"] is False
    assert e["wsgi.input_terminated"] is True
    assert (e["mod_wsgi.process_group"], e["mod_wsgi.application_group"]) == ("test", "")
    assert e["mod_wsgi.thread_id"] in (0, 1)
    # A value of the request before never shows in the next.
    e = ast.literal_eval(shared_worker.get("/env").body.decode())
    assert "HTTP_X_NAME" not in e and "HTTP_COOKIE" not in e


def test_blocks_are_sent_as_they_come(shared_worker):
    r = shared_worker.get("/stream")
    assert r.body == b"part0part1part2"
    assert r.frames == [driver.RESPONSE, driver.DATA, driver.DATA, driver.END, driver.DONE]
    with shared_worker.connect() as c:
        begun = time.monotonic()
        c.post("/slow_stream")
        assert c.frame()[2].endswith(b"first")
        assert time.monotonic() - begun < 0.25
        assert c.response().body == b"second"


def test_large_list(shared_worker):
    r = shared_worker.get("/big")
    assert r.body == b"a" * 100_000 + b"b" * 200_000 + b"c"


def test_write(shared_worker):
    r = shared_worker.get("/write")
    assert r.body == b"one two three" and r.header("X-How") == ["write"]


def test_empty(shared_worker):
    r = shared_worker.get("/nothing")
    assert (r.status, r.reason, r.body) == (204, b"No Content", b"")


def test_status_without_reason_and_a_tuple(shared_worker):
    r = shared_worker.get("/status_only")
    assert (r.status, r.reason, r.body) == (299, b"", b"ab")
    assert r.header("X-Cafe") == ["caf\u00e9"]


@pytest.mark.parametrize(
    ("what", "raised"),
    [
        ("status-type", "TypeError"),
        ("status-form", "ValueError"),
        ("status-text", "ValueError"),
        ("status-control", "ValueError"),
        ("status-1xx", "ValueError"),
        ("headers-type", "TypeError"),
        ("headers-item", "TypeError"),
        ("headers-pair", "ValueError"),
        ("name-type", "TypeError"),
        ("value-type", "TypeError"),
        ("name-token", "ValueError"),
        ("name-colon", "ValueError"),
        ("value-newline", "ValueError"),
        ("value-nul", "ValueError"),
        ("value-unicode", "UnicodeEncodeError"),
        ("hop", "ValueError"),
        ("length", "ValueError"),
        ("exc-info", "RuntimeError"),
    ],
)
def test_start_response_refuses(shared_worker, what, raised):
    assert shared_worker.get(f"/bad_start/{what}").body == raised.encode()


def test_start_response_again(shared_worker):
    r = shared_worker.get("/replaced")
    assert (r.status, r.headers) == (201, [("X-B", "2")])
    r = shared_worker.get("/exc_info_before")
    assert (r.status, r.body) == (500, b"replaced")
    assert shared_worker.get("/twice_after").body == b"sent refused"
    r = shared_worker.get("/exc_info_after")
    assert (r.body, r.abort) == (b"sent", driver.APPLICATION)
    assert "ValueError: after the head" in r.log_text


# --- failures -----------------------------------------------------------------------------------------------------


def test_exception(shared_worker):
    r = shared_worker.get("/boom")
    assert (r.status, r.abort, r.done) == (None, driver.APPLICATION, True)
    assert all(level == 3 for level, _ in r.logs)
    assert r.logs[0][1].startswith("MWR0430: exception ValueError occurred processing WSGI script")
    assert "Traceback (most recent call last):" in r.log_text and "in boom" in r.log_text
    # one record a line; whoever writes the log escapes control characters
    assert all("\n" not in text for _, text in r.logs)
    assert r.log_text.count("_worker") == 0


def test_exception_after_the_head(shared_worker):
    r = shared_worker.get("/late_boom")
    assert (r.status, r.body, r.abort, r.ended) == (200, b"begun", driver.APPLICATION, False)


def test_system_exit_does_not_end_the_process(shared_worker):
    r = shared_worker.get("/leave")
    assert r.abort == driver.APPLICATION and "MWR0431" in r.log_text
    assert shared_worker.get("/").body == b"hello"


@pytest.mark.parametrize(
    ("path", "text"),
    [("text", "must yield bytes"), ("not_started", "start_response() must be called"), ("not_iterable", "int")],
)
def test_protocol_errors(shared_worker, path, text):
    r = shared_worker.get(f"/{path}")
    assert r.abort == driver.PROTOCOL and text in r.log_text


def test_close(shared_worker):
    r = shared_worker.get("/closing")
    assert r.frames == [driver.RESPONSE, driver.DATA, driver.END, driver.LOG, driver.DONE]
    r = shared_worker.get("/closing_fails")
    assert r.ended and r.abort is None and "KeyError: 'in close'" in r.log_text
    r = shared_worker.get("/closing_late")
    assert r.frames[-1] == driver.DONE and r.abort == driver.APPLICATION and "close has run" in r.log_text
    assert not r.ended


def test_client_gone_during_the_response(worker):
    with worker.connect() as c:
        row = c.post("/endless")
        c.frame()
        c.frame()
    worker.table.wait_free(row)
    worker.wait_log("close has run")
    assert worker.get("/").body == b"hello"


def test_objects_kept_beyond_the_request(worker):
    worker.get("/kept")
    assert worker.get("/use_kept").body == b"RuntimeError RuntimeError"


# --- files --------------------------------------------------------------------------------------------------------


def test_file_is_passed(shared_worker, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 1000)
    r = shared_worker.get("/file", environ={"QUERY_STRING": str(path)})
    assert r.file == (3, 9997) and r.body == path.read_bytes()[3:]
    assert r.header("Content-Length") == ["9997"]
    r = shared_worker.get("/file", environ={"QUERY_STRING": str(path), "mod_wsgi.length": "7"})
    assert r.file == (3, 7) and r.header("Content-Length") == ["7"]


def test_a_file_is_read_where_its_bytes_are_wanted(shared_worker, tmp_path):
    """N10, N11: a response that the server stores or looks at comes as bytes, whatever its length."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789" * 20_000)
    for length in (199_997, 7, 0):
        environ = {"QUERY_STRING": str(path), "mod_wsgi.length": str(length)}
        r = shared_worker.get("/file", environ=environ, no_file=True)
        assert r.file is None and r.ended and r.done
        assert r.body == path.read_bytes()[3 : 3 + length] and r.header("Content-Length") == [str(length)]


def test_a_response_says_how_long_the_application_took(shared_worker):
    """N4: milliseconds since the request was claimed, in the head."""
    assert shared_worker.get("/").ran < 2000
    assert 200 <= shared_worker.get("/nap").ran < 5000


def test_what_is_no_regular_file_is_read(shared_worker):
    r = shared_worker.get("/unpassable")
    assert r.file is None and r.body == b"from a pipe"
    r = shared_worker.get("/file", environ={"QUERY_STRING": "/proc/self/status"})
    assert r.file is None and b"Threads:" in r.body


# --- logs ---------------------------------------------------------------------------------------------------------


def test_logs_of_a_request(shared_worker):
    r = shared_worker.get("/logs")
    assert r.logs == [
        (6, "to stdout"),
        (4, "to stderr"),
        (4, "to errors"),
        (6, "bytes \\xff"),
        (6, "surrogate \\udcff"),
        (3, "logged error"),
        (3, "with two lines"),
        (2, "logged critical"),
        (4, "in pieces"),
    ]


def test_logs_of_no_request(worker):
    worker.get("/background")
    assert worker.wait_log("from a thread")["level"] == "info"


def test_log_flood_neither_blocks_nor_is_lost_silently(worker):
    with worker.connect() as c:
        c.post("/flood")
        wait_for(lambda: worker.get("/").body == b"hello", "another request to be served")
        time.sleep(0.2)
        r = c.response()
    assert r.body == b"done"
    kept = sum("flood" in text for _, text in r.logs)
    lost = [int(text.split()[1]) for _, text in r.logs if "MWR0427" in text]
    assert kept + sum(lost) == 20_000 and kept > 100


# --- hostile peers ------------------------------------------------------------------------------------------------


def test_wrong_token(worker):
    c = worker.connect(greet=False)
    with c:
        c.send(driver.HELLO, struct.pack("<HHI", driver.VERSION, 0, 7) + bytes(16))
        assert c.closed()
    assert "wrong token" in worker.wait_log("MWR0422")["text"]
    assert worker.get("/").body == b"hello"


def test_wrong_version(worker):
    with worker.connect(greet=False) as c:
        c.send(driver.HELLO, struct.pack("<HHI", 9, 0, 7) + worker.token)
        assert c.closed()
    assert "version 9" in worker.wait_log("MWR0422")["text"]


def test_request_before_hello(worker):
    with worker.connect(greet=False) as c:
        c.post("/")
        assert c.closed()
    worker.wait_log("MWR0422")


GARBAGE = {
    "noise": b"GET / HTTP/1.1\r\n\r\n",
    "huge": struct.pack("<IBBH", 0xFFFFFFFF, driver.REQUEST, 0, 0),
    "kind": struct.pack("<IBBH", 0, 99, 0, 0),
    "flags": struct.pack("<IBBH", 0, driver.REQUEST, 255, 0),
    "short-request": struct.pack("<IBBH", 3, driver.REQUEST, 0, 0) + b"abc",
    "response": struct.pack("<IBBH", 0, driver.DONE, 0, 0),
    "body": struct.pack("<IBBH", 1, driver.BODY, 0, 0) + b"x",
    "zeroes": bytes(200),
}


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("greet", [True, False])
def test_garbage(shared_worker, what, greet):
    with shared_worker.connect(greet=greet) as c:
        c.sock.sendall(GARBAGE[what])
        assert c.closed()
    assert shared_worker.get("/").body == b"hello"


def test_truncated_frame(worker):
    with worker.connect() as c:
        c.sock.sendall(struct.pack("<IBBH", 500, driver.REQUEST, 0, 0) + b"abc")
    worker.wait_log("MWR0421")
    assert worker.get("/").body == b"hello"


def test_frame_in_pieces(shared_worker):
    with shared_worker.connect() as c:
        real, pieces = c.sock, []
        c.sock = type("S", (), {"sendall": lambda _, data: pieces.append(data)})()
        c.post("/echo", body=b"x" * 50_000)
        c.sock = real
        data = b"".join(pieces)
        for i in (0, 3, 8, 40, 41, 3000, 40_000):
            j = {0: 3, 3: 8, 8: 40, 40: 41, 41: 3000, 3000: 40_000, 40_000: len(data)}[i]
            c.sock.sendall(data[i:j])
            time.sleep(0.01)
        assert c.response().body == b"x" * 50_000


def test_unexpected_descriptors(shared_worker):
    with open("/dev/null") as f:
        for fds in ([f.fileno()], [f.fileno()] * 20):
            with shared_worker.connect() as c:
                c.send(driver.BODY_END, fds=fds)
                assert c.closed()
    assert shared_worker.get("/").body == b"hello"


def test_descriptors_do_not_leak(shared_worker):
    def count():
        return len(os.listdir(f"/proc/{shared_worker.process.pid}/fd"))

    shared_worker.get("/")
    before = wait_for(count, "descriptors")
    with open("/dev/null") as f:
        for _ in range(20):
            with shared_worker.connect() as c:
                c.send(driver.BODY_END, fds=[f.fileno()] * 20)
                assert c.closed()
    wait_for(lambda: count() <= before, "descriptors to be closed")
