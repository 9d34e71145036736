"""Serves scripts by waitress, for comparison: peer.py PORT /mount=script.wsgi …"""

import importlib.util
import sys
from importlib.machinery import SourceFileLoader

from waitress import serve


def load(number, path):
    name = "peer_%d" % number
    loader = SourceFileLoader(name, path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    return module.application


MOUNTS = [(m, load(i, path)) for i, (m, path) in enumerate(a.split("=", 1) for a in sys.argv[2:])]


def application(environ, start_response):
    path = environ["PATH_INFO"]
    for mount, app in MOUNTS:
        if path == mount or path.startswith(mount + "/"):
            environ["SCRIPT_NAME"], environ["PATH_INFO"] = mount, path[len(mount) :]
            return app(environ, start_response)
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"no mount"]


serve(application, host="127.0.0.1", port=int(sys.argv[1]), threads=4, max_request_body_size=1 << 30, _quiet=True)
