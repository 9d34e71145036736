"""What the shared objects export and need (STYLE 9, R26): one record out, nothing of Python in the server."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from harness import product

pytestmark = pytest.mark.ours


def nm(path: pathlib.Path, *options: str) -> list[tuple[str, str]]:
    """(type letter, name) of each dynamic symbol, without versions."""
    tool = shutil.which("nm")
    if not tool:
        pytest.skip("no nm: install binutils")
    out = subprocess.run([tool, "-D", *options, str(path)], capture_output=True, text=True, check=True).stdout
    found = []
    for line in out.splitlines():
        fields = line.split()
        found.append((fields[-2], fields[-1].split("@")[0]))
    return found


def needed(path: pathlib.Path) -> list[str]:
    tool = shutil.which("readelf")
    if not tool:
        pytest.skip("no readelf: install binutils")
    out = subprocess.run([tool, "-d", str(path)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", out)


def worker_file() -> pathlib.Path:
    """The worker's extension, where the binary looks for it."""
    where = os.environ.get("MOD_WSGI_RS_WORKER_DIR")
    path = (pathlib.Path(where) if where else product.binary().parent / "worker") / "_worker.abi3.so"
    assert path.exists(), f"{path} is missing: run `make build`"
    return path


def test_module_exports_one_record() -> None:
    """R26: exactly wsgi_module is exported."""
    exported = {name for kind, name in nm(product.module(), "--defined-only") if kind.isupper() and kind != "A"}
    assert exported == {"wsgi_module"}


def test_module_knows_no_python() -> None:
    """DESIGN 1.2: no symbol of Python, no libpython."""
    undefined = [name for _, name in nm(product.module(), "--undefined-only")]
    assert not [n for n in undefined if n.startswith(("Py", "_Py"))]
    assert not [n for n in undefined if n.startswith("ngx_")]
    assert not [n for n in needed(product.module()) if "python" in n]


def test_module_needs_little() -> None:
    """STYLE 3: only the C library's own objects besides httpd's symbols."""
    allowed = re.compile(r"(libc|libgcc_s|libm|libpthread|libdl|ld-linux[-\w]*)\.so[.\d]*")
    assert not [n for n in needed(product.module()) if not allowed.fullmatch(n)]


@pytest.mark.skipif(not product.has_nginx(), reason="no module for nginx was built")
def test_nginx_module_exports_its_lists() -> None:
    """N17: what load_module looks for and nothing else; no symbol of httpd or Python."""
    module = product.nginx_module()
    exported = {name for kind, name in nm(module, "--defined-only") if kind.isupper() and kind != "A"}
    assert exported == {"ngx_modules", "ngx_module_names", "ngx_module_order"}
    undefined = [name for _, name in nm(module, "--undefined-only")]
    assert [n for n in undefined if n.startswith("ngx_")]
    assert not [n for n in undefined if n.startswith(("Py", "_Py", "ap_", "apr_", "unixd_"))]
    allowed = re.compile(r"(libc|libgcc_s|libm|libpthread|libdl|ld-linux[-\w]*)\.so[.\d]*")
    assert not [n for n in needed(module) if not allowed.fullmatch(n)]


def test_binary_knows_no_python() -> None:
    """DESIGN 2: keeper and supervisor hold no Python."""
    assert not [n for n in needed(product.binary()) if "python" in n]


def test_worker_needs_no_libpython() -> None:
    """DESIGN 2: one abi3 file for every interpreter."""
    path = worker_file()
    assert not [n for n in needed(path) if "python" in n]
    exported = {name for kind, name in nm(path, "--defined-only") if kind.isupper() and kind != "A"}
    assert {n for n in exported if n.startswith("PyInit_")} == {"PyInit__worker"}


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 13), (3, 14)], ids=lambda v: f"{v[0]}.{v[1]}")
def test_worker_is_imported(version: tuple[int, int]) -> None:
    """R18: the worker's extension is imported by each interpreter of this machine."""
    python = product.interpreters().get(version)
    if python is None:
        pytest.skip(f"no CPython {version[0]}.{version[1]} on this machine")
    code = (
        "import importlib.machinery as m, importlib.util as u, sys\n"
        "loader = m.ExtensionFileLoader('_worker', sys.argv[1])\n"
        "spec = u.spec_from_loader('_worker', loader)\n"
        "module = u.module_from_spec(spec); loader.exec_module(module)\n"
        "print(module.__name__)\n"
    )
    done = subprocess.run(
        [str(python), "-I", "-c", code, str(worker_file())], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout.split() == ["_worker"], done.stderr


def test_no_path_of_the_build_machine() -> None:
    """The shipped files do not name the directory they were built in."""
    here = str(product.ROOT).encode()
    if product.target().name != "release":
        pytest.skip("a debug build names its sources")
    nginx = [product.nginx_module()] if product.has_nginx() else []
    for path in (product.module(), product.binary(), worker_file(), *nginx):
        assert here not in path.read_bytes(), path
