"""Answers and bodies at a pace that the test chooses: `/word?argument`. What becomes of each is noted in scratch."""

import os
import time

SCRATCH = os.path.join(os.environ["MWR_TEST_PREFIX"], "scratch")


def note(name):
    open(os.path.join(SCRATCH, name), "w").close()


def wait_for(name):
    while not os.path.exists(os.path.join(SCRATCH, name)):
        time.sleep(0.01)


def ticks(argument):
    """`COUNT,SECONDS`: so many blocks, so long apart."""
    count, seconds = argument.split(",")
    for n in range(int(count)):
        yield b"tick %d\n" % n
        time.sleep(float(seconds))


def half(argument):
    """One block, then nothing until the test says so."""
    try:
        yield b"first"
        wait_for(argument)
        yield b"second"
    finally:
        note("closed-" + argument)


def endless(argument):
    """Blocks of so many bytes until the client has gone."""
    try:
        while True:
            yield b"x" * int(argument)
            time.sleep(0.01)
    finally:
        note("closed-endless")


def application(environ, start_response):
    word, argument = environ["PATH_INFO"].strip("/"), environ["QUERY_STRING"]
    if word == "pid":
        body = b"%d" % os.getpid()
    elif word == "wait":
        wait_for(argument)
        body = b"waited"
    elif word == "slowly":
        # takes the body a little at a time
        n = 0
        while data := environ["wsgi.input"].read(262144):
            n += len(data)
            time.sleep(float(argument))
        body = b"%d" % n
    elif word == "read":
        try:
            body = b"%d" % len(environ["wsgi.input"].read())
        except OSError:
            note("oserror-" + argument)
            raise
    elif word == "begin":
        # asks for the body, and then takes no more of it
        environ["wsgi.input"].read(1)
        wait_for(argument)
        body = b"begun"
    else:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return {"ticks": ticks, "half": half, "endless": endless}[word](argument)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
