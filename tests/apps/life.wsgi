"""Does what a test of the life cycle asks for: `/word?argument`. Every answer names the process."""

import os
import time

import mod_wsgi

SCRATCH = os.path.join(os.environ["MWR_TEST_PREFIX"], "scratch")
KEPT = []


def note(name, text):
    with open(os.path.join(SCRATCH, name), "a") as f:
        f.write(text + "\n")


@mod_wsgi.subscribe_shutdown
def stopping(name, **payload):
    note("stopping", "%d %s" % (os.getpid(), payload["shutdown_reason"]))


def spin(seconds):
    end = time.thread_time() + float(seconds)
    while time.thread_time() < end:
        pass


def grow(mebibytes):
    KEPT.append(bytearray(int(mebibytes) << 20))
    KEPT[-1][::4096] = b"x" * len(KEPT[-1][::4096])


def allocate(mebibytes):
    try:
        grow(mebibytes)
    except MemoryError:
        return "MemoryError"
    return "allocated"


def wait_for(name):
    """Until the test makes the file."""
    while not os.path.exists(os.path.join(SCRATCH, name)):
        time.sleep(0.01)


def catch(name):
    try:
        wait_for(name)
    except mod_wsgi.RequestTimeout:
        return "caught"


def say(text):
    """A log record that belongs to no request."""
    import logging
    import threading

    thread = threading.Thread(target=logging.getLogger().warning, args=(text,))
    thread.start()
    thread.join()


def hold(seconds):
    """Keeps the GIL."""
    import ctypes

    ctypes.PyDLL(None).sleep(int(seconds))


def application(environ, start_response):
    word, argument = environ["PATH_INFO"].strip("/"), environ["QUERY_STRING"]
    what = {"spin": spin, "grow": grow, "alloc": allocate, "wait": wait_for, "catch": catch, "hold": hold, "say": say}
    what["sleep"] = lambda s: time.sleep(float(s))
    said = what[word](argument) if word in what else word
    body = ("%d %s" % (os.getpid(), said)).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
