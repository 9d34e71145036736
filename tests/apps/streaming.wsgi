"""Applications of the streaming tests: the first segment of PATH_INFO picks a function below."""

import hashlib
import json
import os
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCRATCH = os.path.join(os.path.dirname(HERE), "scratch")


def note(line):
    """Tells the test, whichever process this is."""
    with open(os.path.join(SCRATCH, "notes"), "a") as f:
        f.write(line + "\n")


def answer(start_response, text, status="200 OK"):
    body = text.encode()
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def lines(environ, start_response):
    """Each line of the body comes back in upper case as soon as it has been read."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    for line in environ["wsgi.input"]:
        yield line.upper()


def echo(environ, start_response):
    """Each block comes back as soon as it has been read."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    while block := environ["wsgi.input"].read(65536):
        yield block


def answer_first(environ, start_response):
    """Writes a large answer before it reads anything, then says what it has read."""
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for _ in range(int(environ["QUERY_STRING"])):
        yield b"a" * 1048576
    digest, n = hashlib.sha256(), 0
    while block := environ["wsgi.input"].read(65536):
        digest.update(block)
        n += len(block)
    yield f"{n} {digest.hexdigest()}".encode()


def digest(environ, start_response):
    digest, n = hashlib.sha256(), 0
    while block := environ["wsgi.input"].read(65536):
        digest.update(block)
        n += len(block)
    return answer(start_response, f"{n} {digest.hexdigest()}")


def refuse(environ, start_response):
    return answer(start_response, "no\n", "403 Forbidden")


def refuse_in_blocks(environ, start_response):
    """The same, not complete at once."""
    start_response("403 Forbidden", [("Content-Type", "text/plain")])
    yield b"no\n"


def refuse_later(environ, start_response):
    """Refuses after the first bytes."""
    environ["wsgi.input"].read(10)
    return answer(start_response, "enough\n", "403 Forbidden")


def gated(environ, start_response):
    """Reads only when the test lets it."""
    note("gated")
    deadline = time.monotonic() + 20
    while not os.path.exists(os.path.join(SCRATCH, "gate")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return answer(start_response, environ["wsgi.input"].read().decode())


def tell(environ, start_response):
    """Notes how reading the body ended."""
    name = environ["QUERY_STRING"]
    note(f"{name} started")
    try:
        n = 0
        while block := environ["wsgi.input"].read(1000):
            n += len(block)
        note(f"{name} whole {n}")
    except OSError as e:
        note(f"{name} OSError {e.errno}")
        raise
    return answer(start_response, "told")


def keys(environ, start_response):
    wanted = ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_EXPECT", "wsgi.input_terminated")
    body = environ["wsgi.input"].read().decode()
    return answer(start_response, json.dumps([environ.get(k) for k in wanted] + [body]))


def forever(environ, start_response):
    """Blocks without end, for a client that leaves; notes that it was closed."""
    name = environ["QUERY_STRING"]
    start_response("200 OK", [("Content-Type", "text/plain")])
    note(f"{name} started")
    try:
        while True:
            yield b"x" * 1000
            time.sleep(0.002)
    finally:
        note(f"{name} closed")


def application(environ, start_response):
    return globals()[environ["PATH_INFO"].split("/")[1]](environ, start_response)
