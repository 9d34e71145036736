"""Runs the applications that tests put into the directory cases (harness/case.py): the first segment of PATH_INFO names
one."""

import os
from wsgiref.validate import validator

CASES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases")
loaded = {}


def load(environ):
    name = environ["PATH_INFO"].split("/")[1]
    if name not in loaded:
        path = os.path.join(CASES, name + ".py")
        with open(path) as f:
            code = compile(f.read(), path, "exec")
        namespace = {"__name__": "case", "__file__": path}
        exec(code, namespace)
        loaded[name] = namespace["application"]
    return loaded[name]


def application(environ, start_response):
    return load(environ)(environ, start_response)


def validated(environ, start_response):
    """The same with wsgiref.validate between server and application: it raises what either does wrong."""
    return validator(load(environ))(environ, start_response)
