"""Applications for clients that leave: the first segment of PATH_INFO picks a function below, the query names the
request in the notes."""

import os
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCRATCH = os.path.join(os.path.dirname(HERE), "scratch")


def note(environ, what):
    if environ["QUERY_STRING"]:
        with open(os.path.join(SCRATCH, "notes"), "a") as f:
            f.write(environ["QUERY_STRING"] + " " + what + "\n")


def await_gate(name):
    deadline = time.monotonic() + 30
    while not os.path.exists(os.path.join(SCRATCH, name)) and time.monotonic() < deadline:
        time.sleep(0.005)


def hold(environ, start_response):
    """Computes until the gate opens, then answers with an iterable that notes its close()."""
    note(environ, "runs")
    await_gate("gate")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Noted(environ, iter([b"held"]))


class Noted:
    def __init__(self, environ, items):
        self.environ, self.items = environ, items

    def __iter__(self):
        return self.items

    def close(self):
        note(self.environ, "closed")


def stream(environ, start_response):
    """Blocks without end."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    note(environ, "runs")

    def blocks():
        while True:
            yield b"x" * 2000
            time.sleep(0.001)

    return Noted(environ, blocks())


def writing(environ, start_response):
    """The same with write()."""
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    note(environ, "runs")
    try:
        while True:
            write(b"x" * 2000)
            time.sleep(0.001)
    except OSError as e:
        note(environ, f"OSError {e.errno}")
    return []


def read(environ, start_response):
    n = len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % n]


def brief(environ, start_response):
    """Takes a little while, so that clients leave in the middle of it."""
    time.sleep(0.002)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return Noted(environ, iter([b"y" * 30000] * 20))


def application(environ, start_response):
    return globals()[environ["PATH_INFO"].split("/")[-1]](environ, start_response)
