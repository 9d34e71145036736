"""The smallest application: says hello, and shows which Python serves it."""

import sys


def application(environ, start_response):
    body = f"Hello from Python {sys.version.split()[0]}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))])
    return [body]
