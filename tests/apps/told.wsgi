"""An application that does what a file beside it says, and writes down what it was asked: a server's cache shows by what
does not reach it. {"does.json": status, headers, body, how}; the answers are numbered."""

import itertools
import json
import os
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCRATCH = os.path.join(os.path.dirname(HERE), "scratch")
NUMBERS = itertools.count(1)


def application(environ, start_response):
    n = next(NUMBERS)
    try:
        with open(os.path.join(SCRATCH, "does.json")) as f:
            does = json.load(f)
    except FileNotFoundError:
        does = {}
    call = {k: v for k, v in environ.items() if isinstance(v, str)}
    call["body"] = environ["wsgi.input"].read().decode("latin-1")
    with open(os.path.join(SCRATCH, "calls"), "a") as f:
        f.write(json.dumps(call) + "\n")
    how = does.get("how", "list")
    if how == "wait":
        while not os.path.exists(os.path.join(SCRATCH, "go")):
            time.sleep(0.005)
    if how == "raise":
        raise RuntimeError("told to")
    if how == "exit":
        os._exit(3)
    if how == "text":
        start_response("200 OK", [])
        return ["no bytes"]
    if how == "log":
        print("said before the head", file=sys.stderr)
    body = does.get("body", f"{n} of {environ['PATH_INFO']} by {os.getpid()}").encode("latin-1") * does.get("times", 1)
    headers = [tuple(h) for h in does.get("headers", [])]
    if "accel" in does and "REDIRECTED" not in environ:
        headers.append(("X-Accel-Redirect", does["accel"]))
    if how == "short":
        headers.append(("Content-Length", str(len(body) + 10)))
    start_response(does.get("status", "200 OK"), headers)
    if how == "file":
        path = os.path.join(SCRATCH, "passed")
        with open(path, "wb") as f:
            f.write(body)
        return environ["wsgi.file_wrapper"](open(path, "rb"))
    if how in ("blocks", "broken", "killed"):
        return blocks(body, how)
    return [body]


def blocks(body, how):
    for i in range(0, len(body), 4096):
        yield body[i : i + 4096]
    if how == "broken":
        raise RuntimeError("told to break off")
    if how == "killed":
        # so that the server has what was yielded
        time.sleep(0.1)
        os._exit(3)


def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b'<a><!--# include virtual="/first?x=1" --></a><b><!--# include virtual="/second" --></b>']


def auth(environ, start_response):
    body = environ["wsgi.input"].read()
    alone = not body and environ.get("CONTENT_LENGTH", "0") in ("", "0") and environ["REQUEST_METHOD"] == "GET"
    start_response("200 OK" if alone and "HTTP_X_KEY" in environ else "401 Unauthorized", [("X-Who", "somebody")])
    return [b"not for the client" * 1000]
