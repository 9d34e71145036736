"""Tells what this process and this request look like, as JSON."""

import json
import locale
import os
import sys
import threading

NAME = "two"


def report(environ, callable_name):
    mask = os.umask(0)
    os.umask(mask)
    with open("/proc/self/cmdline", "rb") as f:
        cmdline = f.read().rstrip(b"\0").decode().split("\0")
    return {
        "name": NAME,
        "callable": callable_name,
        "file": __file__,
        "pid": os.getpid(),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": os.getgroups(),
        "umask": mask,
        "cwd": os.getcwd(),
        "environ": dict(os.environ),
        "path": sys.path,
        "prefix": sys.prefix,
        "base_prefix": sys.base_prefix,
        "executable": sys.executable,
        "version": list(sys.version_info[:2]),
        "argv": sys.argv,
        "cmdline": cmdline,
        "locale": locale.setlocale(locale.LC_ALL),
        "encoding": locale.getpreferredencoding(False),
        "fds": sorted(os.listdir("/proc/self/fd"), key=int),
        "stdin": os.readlink("/proc/self/fd/0"),
        "signal_mask": next(line.split()[1] for line in open("/proc/self/status") if line.startswith("SigBlk")),
        "threads": threading.active_count(),
        "process_group": environ["mod_wsgi.process_group"],
        "application_group": environ["mod_wsgi.application_group"],
        "callable_object": environ["mod_wsgi.callable_object"],
        "script_name": environ["SCRIPT_NAME"],
        "path_info": environ["PATH_INFO"],
        "script_filename": environ["SCRIPT_FILENAME"],
        "multiprocess": environ["wsgi.multiprocess"],
        "multithread": environ["wsgi.multithread"],
        "authorization": environ.get("HTTP_AUTHORIZATION"),
    }


def answer(environ, start_response, name):
    body = json.dumps(report(environ, name)).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def application(environ, start_response):
    return answer(environ, start_response, "application")


def other(environ, start_response):
    return answer(environ, start_response, "other")


not_callable = "a string"
