"""R18: interpreters and virtual environments of each kind, also side by side."""

from __future__ import annotations

import pathlib
import threading

import pytest

from harness import product
from harness.apache import Apache
from harness.inspect import look

ALIAS = "WSGIScriptAlias /{0} {{apps}}/inspect.wsgi process-group={0} application-group=%{{GLOBAL}}\n"
SUPPORTED = [(3, 10), (3, 11), (3, 12), (3, 13), (3, 14)]


def group(name: str, home: pathlib.Path | str) -> str:
    return f"WSGIDaemonProcess {name} python-home={home}\n" + ALIAS.format(name)


@pytest.mark.ours
@pytest.mark.parametrize(
    "options", [["--symlinks"], ["--copies"], ["--system-site-packages"]], ids=lambda o: o[0].strip("-")
)
def test_venv_kinds(apache, options: list[str]) -> None:
    """R18: symlinked, copied and --system-site-packages environments; nothing of ours is installed in them."""
    server: Apache = apache(start=False)
    python = product.reachable_python((3, 11))
    if python is None:
        pytest.skip("no CPython 3.11")
    venv = product.make_venv(server.prefix / "venv", python, *options)
    site = next(venv.glob("lib/python3*/site-packages"))
    (site / "only_in_venv.py").write_text("VALUE = 'from the venv'\n")
    server.write("inspect.wsgi", "import only_in_venv\n" + (server.apps / "inspect.wsgi").read_text())
    server.config = group("v", venv)
    server.start()
    v = look(server, "/v")
    assert v["prefix"] == str(venv) and v["base_prefix"] != str(venv)
    assert str(site) in v["path"]
    system = any(
        "dist-packages" in p or (p.endswith("site-packages") and not p.startswith(str(venv))) for p in v["path"]
    )
    if "--system-site-packages" in options:
        assert system or str(python).startswith("/tmp")
    else:
        assert not system


@pytest.mark.ours
@pytest.mark.parametrize("version", SUPPORTED, ids=lambda v: f"{v[0]}.{v[1]}")
def test_each_version(apache, version: tuple[int, int]) -> None:
    """R18: one worker file serves every CPython from 3.10 on, here those of this machine."""
    python = product.reachable_python(version)
    if python is None:
        pytest.skip(f"no CPython {version[0]}.{version[1]} on this machine")
    server: Apache = apache(start=False)
    venv = product.make_venv(server.prefix / "venv", python)
    alias = "process-group=v application-group=%{GLOBAL}"
    server.config = (
        group("v", venv)
        + f"WSGIScriptAlias /c {{apps}}/conform.wsgi {alias}\n"
        + f"WSGIScriptAlias /checked {{apps}}/cases.wsgi callable-object=validated {alias}\n"
    )
    server.write(
        "cases/reads.py",
        "def application(environ, start_response):\n"
        "    body = environ['wsgi.input'].read(int(environ['CONTENT_LENGTH']))\n"
        "    start_response('200 OK', [('Content-Type', 'text/plain')])\n"
        "    return [body]\n",
    )
    server.start()
    v = look(server, "/v")
    assert tuple(v["version"]) == version and v["prefix"] == str(venv)
    assert server.get("/c/echo", method="POST", body=b"x" * 100000).body == b"x" * 100000
    assert server.get("/c/as-generator").body == b"g1,g2"
    assert server.get("/c/file-wrapper?whole:100000").complete
    assert server.get("/checked/reads", method="POST", body=b"v").body == b"v"


@pytest.mark.ours
def test_installation_as_home(apache) -> None:
    """R18: python-home may be an installation instead of a virtual environment."""
    for version in SUPPORTED:
        python = product.interpreters().get(version)
        if python and not str(python).startswith("/usr/bin"):
            home = product.reachable_python(version).parent.parent
            server = apache(group("v", home))
            assert look(server, "/v")["prefix"] == str(home)
            return
    pytest.skip("no CPython besides Debian's")


@pytest.mark.ours
def test_two_interpreters_at_once(apache) -> None:
    """R26: two groups with two different interpreters serve side by side."""
    found = [(v, product.reachable_python(v)) for v in ((3, 11), (3, 12), (3, 13), (3, 10))]
    found = [(v, p) for v, p in found if p is not None][:3]
    if len(found) < 2:
        pytest.skip("only one CPython on this machine")
    server: Apache = apache(start=False)
    config = ""
    for version, python in found:
        name = f"py{version[1]}"
        config += group(name, product.make_venv(server.prefix / name, python))
    server.config = config
    server.start()
    errors: list[str] = []

    def client(version: tuple[int, int]) -> None:
        for _ in range(30):
            v = look(server, f"/py{version[1]}")
            if tuple(v["version"]) != version or v["prefix"] != str(server.prefix / f"py{version[1]}"):
                errors.append(f"{version}: {v['version']} {v['prefix']}")

    threads = [threading.Thread(target=client, args=(v,)) for v, _ in found for _ in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


@pytest.mark.ours
def test_mod_wsgi_in_the_venv_does_no_harm(apache) -> None:
    """R18: a package mod_wsgi in the environment is neither imported nor in the way of ours."""
    server: Apache = apache(start=False)
    python = product.reachable_python((3, 11)) or next(iter(product.interpreters().values()))
    venv = product.make_venv(server.prefix / "venv", python)
    site = next(venv.glob("lib/python3*/site-packages"))
    (site / "mod_wsgi").mkdir()
    (site / "mod_wsgi" / "__init__.py").write_text("raise RuntimeError('PyPI mod_wsgi was imported')\n")
    server.config = group("v", venv)
    server.start()
    assert look(server, "/v")["prefix"] == str(venv)
