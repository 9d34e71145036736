"""For deadlines: computes for a while in the interpreter, where an exception can be raised at any bytecode."""

import time

import mod_wsgi

TIMEOUTS = []


class Body:
    """An iterable with a close()."""

    def __init__(self, items):
        self.items = iter(items)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.items)

    def close(self):
        sum(range(50))


def spin(microseconds):
    end = time.perf_counter() + microseconds / 1e6
    while time.perf_counter() < end:
        sum(range(20))


def flood(count, microseconds):
    for _ in range(count):
        yield b"x" * 65536
    spin(microseconds)


def application(environ, start_response):
    kind, microseconds, name = environ["PATH_INFO"].strip("/").split("/")
    if kind == "flood":
        # more than the socket and the reader take
        start_response("200 OK", [])
        return flood(int(name), int(microseconds))
    try:
        spin(int(microseconds))
    except mod_wsgi.RequestTimeout:
        TIMEOUTS.append(name)
        raise
    start_response("200 OK", [])
    if kind == "close":
        return Body([name.encode(), b"!"])
    return [name.encode(), b"!"]
