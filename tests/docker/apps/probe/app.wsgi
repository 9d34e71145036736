"""Shows where it runs, and does on request what the tests of the images need."""

import json
import os
import sys
import time
from urllib.parse import parse_qs

READY = []
#: memory that the application needs once it is loaded, in MiB
BALLAST = b"x" * (int(os.environ.get("BALLAST", "0")) << 20)


def application(environ, start_response):
    path = environ["PATH_INFO"]
    query = {k: v[-1] for k, v in parse_qs(environ["QUERY_STRING"]).items()}
    if path == "/slow":
        # Says that it has begun before it waits.
        print("slow request begun", file=environ["wsgi.errors"], flush=True)
        time.sleep(float(query["seconds"]))
        answer = {"slow": True}
    elif path == "/eat":
        READY.append(b"x" * (int(query["mib"]) << 20))
        answer = {"eaten": query["mib"]}
    elif path == "/orphan":
        # A grandchild whose parent has gone: it is left to the first process of the container.
        os.system("(sleep 0.2 &) >/dev/null 2>&1")
        answer = {}
    elif path == "/body":
        answer = {"length": len(environ["wsgi.input"].read())}
    elif path == "/log":
        print("päge \"said\" <this>\tand that", file=sys.stderr, flush=True)
        answer = {"request_id": environ["mod_wsgi.request_id"]}
    else:
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        answer = {
            "uid": os.getuid(),
            "gid": os.getgid(),
            "groups": os.getgroups(),
            "pid": os.getpid(),
            "environ": dict(os.environ),
            "capabilities": status["CapEff"].strip(),
            "no_new_privs": status["NoNewPrivs"].strip(),
            "seccomp": status["Seccomp"].strip(),
            "version": sys.version.split()[0],
            "prefix": sys.prefix,
            "multiprocess": environ["wsgi.multiprocess"],
        }
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
