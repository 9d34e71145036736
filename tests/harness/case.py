"""Applications that stand in the test that asks them: a function of a test is put on the server by its source.

A name that the function takes from the test is carried along when it can be: constants (also those of a parametrised
test), functions, classes, modules of the standard library. apps/cases.wsgi runs them."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import os
import sys
import textwrap
import types
from collections.abc import Callable, Iterator

from . import http
from .server import Server
from .wait import wait_until


def note(tag: str) -> None:
    """For cases: tells the test something, whichever process this is, also when the answer cannot."""
    name = os.path.basename(__file__).removesuffix(".py")
    scratch = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "scratch")
    with open(os.path.join(scratch, "notes-" + name), "a", encoding="latin-1", newline="\n") as f:
        f.write(tag + "\n")


def text(start_response, body, status: str = "200 OK", headers=()):
    """For cases: a plain answer with its length."""
    data = body if isinstance(body, bytes) else body.encode("utf-8", "surrogateescape")
    start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(data))), *headers])
    return [data]


@dataclasses.dataclass
class Case:
    """An application that has been put on a server."""

    server: Server
    name: str
    mount: str

    @property
    def path(self) -> str:
        return f"{self.mount}/{self.name}"

    def get(self, rest: str = "", **kw: object) -> http.Response:
        """One request on a connection of its own; `rest` is appended to the path."""
        return self.server.get(self.path + rest, **kw)

    def request(self, c: http.Connection, rest: str = "", method: str = "GET", **kw: object) -> http.Response:
        """One request on a connection."""
        return c.request(method, self.path + rest, **kw)  # type: ignore[arg-type]

    def notes(self) -> list[str]:
        """What the application has noted since it was put there."""
        path = self.server.scratch / f"notes-{self.name}"
        return path.read_text("latin-1").split("\n")[:-1] if path.exists() else []

    def wait_notes(self, *expected: str) -> None:
        """Waits for these notes, in this order, and no others."""
        wait_until(lambda: len(self.notes()) >= len(expected), 10, f"notes {expected}")
        assert self.notes() == list(expected)


def deploy(server: Server, app: Callable[..., object], mount: str = "/case") -> Case:
    """Puts the source of `app`, an application within a test, on the server."""
    lines = source(app) + f"\n\napplication = {app.__name__}\n"
    name = hashlib.sha256(lines.encode()).hexdigest()[:16]
    path = server.apps / "cases" / f"{name}.py"
    if not path.exists():
        server.write(f"cases/{name}.py", lines, expand=False)
        path.parent.chmod(0o755)
    (server.scratch / f"notes-{name}").unlink(missing_ok=True)
    return Case(server, name, mount)


def source(app: Callable[..., object]) -> str:
    """`app` as a text of its own."""
    parts: dict[str, str] = {}
    _carry(app, parts)
    return "\n".join(["from __future__ import annotations", *parts.values()])


def _carry(thing: Callable[..., object] | type, parts: dict[str, str]) -> None:
    parts[thing.__name__] = ""
    text = textwrap.dedent(inspect.getsource(thing))
    members = vars(thing).values() if isinstance(thing, type) else [thing]
    for function in filter(inspect.isfunction, members):
        outer = dict(function.__globals__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            outer[name] = cell.cell_contents
        for name in dict.fromkeys(_names(function.__code__)):
            # pytest's rewritten asserts use names that are no identifiers
            if name in outer and name not in parts and name.isidentifier() and not name.startswith("__"):
                _carry_value(name, outer[name], parts)
    del parts[thing.__name__]
    parts[thing.__name__] = text


def _carry_value(name: str, value: object, parts: dict[str, str]) -> None:
    if isinstance(value, types.ModuleType):
        if value.__name__.split(".")[0] in sys.stdlib_module_names:
            parts[name] = f"import {value.__name__} as {name}"
    elif isinstance(value, (types.FunctionType, type)):
        if value.__name__ == name and value.__module__ not in sys.stdlib_module_names:
            _carry(value, parts)
    else:
        try:
            ast.literal_eval(repr(value))
        except (ValueError, SyntaxError, RecursionError):
            # Not a constant, so not for the application: most often a name that an attribute happens to share.
            return
        parts[name] = f"{name} = {value!r}"


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from code.co_freevars
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
