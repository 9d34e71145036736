"""Which files are tested: the module, the binary, the interpreters; chosen by MWR_SO, MWR_PROFILE and MWR_VENV."""

from __future__ import annotations

import functools
import glob
import os
import pathlib
import re
import shutil
import stat
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TESTS = ROOT / "tests"
IS_ROOT = os.geteuid() == 0


class Missing(Exception):
    """Something the tests need is not on this machine or has not been built."""


@functools.cache
def target() -> pathlib.Path:
    """The directory of the build under test: target/<MWR_PROFILE>, release unless told; debug when only that exists."""
    base = pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
    profile = os.environ.get("MWR_PROFILE", "release")
    if not (base / profile / "libmod_wsgi_rs.so").exists() and (base / "debug" / "libmod_wsgi_rs.so").exists():
        print(f"tests: no {base / profile}/libmod_wsgi_rs.so, the debug build is tested")
        profile = "debug"
    return base / profile


@functools.cache
def module() -> pathlib.Path:
    """The .so that LoadModule gets."""
    path = pathlib.Path(os.environ.get("MWR_SO") or target() / "libmod_wsgi_rs.so")
    if not path.exists():
        raise Missing(f"{path} does not exist: run `make build`, or name a module with MWR_SO")
    return path.resolve()


@functools.cache
def is_ours() -> bool:
    """False when a stand-in, such as PyPI's mod_wsgi, is loaded in place of the module."""
    return "mod_wsgi_rs" in module().name


@functools.cache
def binary() -> pathlib.Path:
    """The binary `mod-wsgi-rs` that belongs to the module."""
    path = module().parent / "mod-wsgi-rs" if is_ours() else target() / "mod-wsgi-rs"
    if not path.exists():
        raise Missing(f"{path} does not exist: run `make build`")
    return path


@functools.cache
def httpd() -> str:
    """Apache's binary."""
    for name in (os.environ.get("MWR_HTTPD"), "apache2", "httpd", "/usr/sbin/apache2", "/usr/sbin/httpd"):
        found = name and shutil.which(name)
        if found:
            return found
    raise Missing("no Apache found: install apache2-bin or name the binary with MWR_HTTPD")


@functools.cache
def nginx() -> str:
    """nginx's binary."""
    for name in (os.environ.get("MWR_NGINX"), "nginx", "/usr/sbin/nginx"):
        found = name and shutil.which(name)
        if found:
            return found
    raise Missing("no nginx found: install nginx-light or name the binary with MWR_NGINX")


@functools.cache
def nginx_module() -> pathlib.Path:
    """The .so that load_module gets."""
    path = pathlib.Path(os.environ.get("MWR_NGINX_SO") or target() / "libngx_http_wsgi_rs_module.so")
    if not path.exists():
        raise Missing(f"{path} does not exist: run `make build` where nginx's headers are")
    return path.resolve()


@functools.cache
def has_nginx() -> bool:
    """Whether nginx can be tested here: its binary and the module for it."""
    try:
        return bool(nginx() and nginx_module())
    except Missing:
        return False


@functools.cache
def compiled_in() -> frozenset[str]:
    """Modules that are part of Apache's binary, by source name such as mod_unixd.c."""
    out = subprocess.run([httpd(), "-l"], capture_output=True, text=True, check=True).stdout
    return frozenset(re.findall(r"\S+\.c", out))


@functools.cache
def modules_dir() -> pathlib.Path:
    """Where Apache's own loadable modules lie."""
    for d in ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules", "/usr/lib/httpd/modules"):
        if os.path.isdir(d):
            return pathlib.Path(d)
    raise Missing("Apache's modules were not found")


def has_module(name: str) -> bool:
    """Whether mod_<name> can be loaded."""
    return (modules_dir() / f"mod_{name}.so").exists()


@functools.cache
def server_user() -> tuple[str, str]:
    """User and group that request-serving processes get when the tests run as root."""
    import grp
    import pwd

    for user, group in (("www-data", "www-data"), ("apache", "apache"), ("nobody", "nogroup"), ("nobody", "nobody")):
        try:
            pwd.getpwnam(user), grp.getgrnam(group)
        except KeyError:
            continue
        return user, group
    raise Missing("no user for the server's processes")


@functools.cache
def venv() -> pathlib.Path:
    """The virtual environment with the frameworks: MWR_VENV, else build/venv, else the one that runs the tests."""
    for candidate in (os.environ.get("MWR_VENV"), ROOT / "build" / "venv", os.environ.get("VIRTUAL_ENV")):
        if candidate and (pathlib.Path(candidate) / "bin" / "python").exists():
            return pathlib.Path(candidate)
    import sys

    if sys.prefix != sys.base_prefix:
        return pathlib.Path(sys.prefix)
    raise Missing("no virtual environment with tests/requirements.txt: set MWR_VENV")


def python_info(python: str | os.PathLike[str]) -> tuple[str, tuple[int, int]] | None:
    """Implementation name and version of an interpreter, None when it does not run."""
    code = "import sys; print(sys.implementation.name, *sys.version_info[:2])"
    try:
        out = subprocess.run([os.fspath(python), "-I", "-c", code], capture_output=True, text=True, timeout=30)
    except OSError:
        return None
    if out.returncode:
        return None
    name, major, minor = out.stdout.split()
    return name, (int(major), int(minor))


@functools.cache
def interpreters() -> dict[tuple[int, int], pathlib.Path]:
    """CPythons of this machine by version: Debian's first, then pyenv's and uv's."""
    found: dict[tuple[int, int], pathlib.Path] = {}
    patterns = ["/usr/bin/python3", "/usr/bin/python3.[0-9]*", "/usr/local/bin/python3.[0-9]*"]
    patterns += [
        os.path.expanduser(p) for p in ("~/.pyenv/versions/*/bin/python3", "~/.local/share/uv/python/*/bin/python3")
    ]
    for pattern in patterns:
        for path in sorted(glob.glob(pattern)):
            if path.endswith("config"):
                continue
            info = python_info(path)
            if info and info[0] == "cpython" and info[1] not in found:
                found[info[1]] = pathlib.Path(path)
    return found


def reachable(path: str | os.PathLike[str]) -> bool:
    """Whether every directory above `path` lets strangers pass, so that the server's user can get there."""
    p = pathlib.Path(os.path.realpath(path))
    return all(os.stat(d).st_mode & stat.S_IXOTH for d in [p, *p.parents]) or not IS_ROOT


_copies: dict[pathlib.Path, pathlib.Path] = {}


def reachable_python(version: tuple[int, int]) -> pathlib.Path | None:
    """An interpreter of that version which the server's user can run; a private one (pyenv below /root) is linked or
    copied to a place of the tests' own. None when this machine has no such version."""
    path = interpreters().get(version)
    if path is None or reachable(path):
        return path
    return relocate(path)


def relocate(python: pathlib.Path) -> pathlib.Path:
    """A copy (hard links where possible) of the installation of `python` under /tmp; removed by `remove_copies`."""
    real = pathlib.Path(os.path.realpath(python))
    if real not in _copies:
        prefix = real.parent.parent
        name = real.name  # python3.12
        dest = pathlib.Path(tempfile.mkdtemp(prefix="mwr-python-"))
        dest.chmod(0o755)
        (dest / "bin").mkdir()
        (dest / "lib").mkdir()
        _move_rpath(real, dest / "bin" / name, prefix / "lib", dest / "lib")
        skip = shutil.ignore_patterns("test", "tests", "idlelib", "tkinter", "turtledemo", "config-*", "site-packages")
        shutil.copytree(prefix / "lib" / name, dest / "lib" / name, ignore=skip, copy_function=_link, symlinks=True)
        (dest / "lib" / name / "site-packages").mkdir(exist_ok=True)
        # venv needs pip's bundle only when asked for pip, which tests do not do
        for lib in glob.glob(str(prefix / "lib" / "libpython*")):
            _link(lib, dest / "lib" / os.path.basename(lib))
        for alias in ("python3", "python"):
            os.symlink(name, dest / "bin" / alias)
        _copies[real] = dest / "bin" / name
    return _copies[real]


def _move_rpath(src: pathlib.Path, dst: pathlib.Path, old: pathlib.Path, new: pathlib.Path) -> None:
    """Copies an executable whose run-time library path is `old`, so that it finds its libpython in `new` (no longer)."""
    data, before, after = src.read_bytes(), bytes(old) + b"\0", bytes(new) + b"\0"
    if len(after) <= len(before):
        data = data.replace(before, after.ljust(len(before), b"\0"))
    dst.write_bytes(data)
    dst.chmod(0o755)


def _link(src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
    try:
        os.link(src, dst)
    except OSError:
        shutil.copy2(src, dst)


def remove_copies() -> None:
    """Deletes what `relocate` made."""
    for path in _copies.values():
        shutil.rmtree(path.parent.parent, ignore_errors=True)
    _copies.clear()


def make_venv(where: pathlib.Path, python: pathlib.Path, *options: str) -> pathlib.Path:
    """A virtual environment without pip, made by the interpreter's own `-m venv`."""
    subprocess.run([str(python), "-m", "venv", "--without-pip", *options, str(where)], check=True, capture_output=True)
    return where
