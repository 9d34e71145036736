"""Applications of the spool tests: the first segment of PATH_INFO picks a function below."""

import os
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCRATCH = os.path.join(os.path.dirname(HERE), "scratch")


def note(line):
    with open(os.path.join(SCRATCH, "notes"), "a") as f:
        f.write(line + "\n")


def answer(start_response, text):
    body = text.encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def count(environ, start_response):
    n = 0
    while block := environ["wsgi.input"].read(65536):
        n += len(block)
    note(f"count {n}")
    return answer(start_response, str(n))


def gated(environ, start_response):
    """Keeps its body until the test lets go."""
    note("gated")
    deadline = time.monotonic() + 20
    while not os.path.exists(os.path.join(SCRATCH, "gate")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return count(environ, start_response)


def large(environ, start_response):
    """A numbered answer of so many blocks of 64 KiB, as fast as it goes; notes when the last has been handed over."""
    blocks = int(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for i in range(blocks):
        yield b"%065536d" % i
    note(f"large {blocks}")


def application(environ, start_response):
    return globals()[environ["PATH_INFO"].split("/")[1]](environ, start_response)
