"""Configuration errors: exit status and message of `apache2 -t`, of a first start, and of a restart."""

from __future__ import annotations

import os
import pathlib
import re

import pytest

from harness import product
from harness.apache import Apache
from harness.inspect import look

PYENV = pathlib.Path("~/.pyenv/versions").expanduser()
ALIAS = "WSGIScriptAlias / {apps}/inspect.wsgi process-group=g application-group=%{GLOBAL}\n"
GOOD = "WSGIDaemonProcess g processes=2 threads=3\n" + ALIAS


def old_python() -> str | None:
    """The prefix of a CPython that is too old."""
    for name in ("3.9.18", "3.8.18", "3.7.16"):
        if (PYENV / name / "bin" / "python3").exists():
            return str(PYENV / name)
    return None


@pytest.fixture(scope="module")
def server() -> Apache:
    apache = Apache()
    yield apache
    apache.kill_all()
    apache.destroy()


def test_good(server: Apache) -> None:
    """R5: a good configuration is Syntax OK, and no process or file of ours is left by the test."""
    code, text = server.configtest(GOOD)
    assert code == 0 and "Syntax OK" in text
    assert not server.processes() and not server.sockets()


CASES = {
    "unknown-option": ("WSGIDaemonProcess g thread=3", ["WSGIDaemonProcess", "thread"]),
    "option-without-value": ("WSGIDaemonProcess g threads", ["WSGIDaemonProcess", "threads"]),
    "threads-word": ("WSGIDaemonProcess g threads=many", ["WSGIDaemonProcess", "threads", "many"]),
    "threads-negative": ("WSGIDaemonProcess g threads=-1", ["threads", "-1"]),
    "processes-zero": ("WSGIDaemonProcess g processes=0", ["processes", "0"]),
    "umask": ("WSGIDaemonProcess g umask=999", ["umask", "999"]),
    "queue-limit": ("WSGIDaemonProcess g queue-limit=x", ["queue-limit", "x"]),
    "queue-timeout": ("WSGIDaemonProcess g queue-timeout=soon", ["queue-timeout", "soon"]),
    "unknown-user": ("WSGIDaemonProcess g user=nobody-of-this-name", ["user", "nobody-of-this-name"]),
    "unknown-group": ("WSGIDaemonProcess g group=no-group-of-this-name", ["group", "no-group-of-this-name"]),
    "root": ("WSGIDaemonProcess g user=root", ["user", "root"]),
    "root-by-number": ("WSGIDaemonProcess g user=#0", ["user", "0"]),
    "python-home-missing": ("WSGIDaemonProcess g python-home=/nonexistent-home", ["WSGIDaemonProcess g", "python home", "/nonexistent-home"]),
    "python-home-empty": ("WSGIDaemonProcess g python-home={prefix}/htdocs", ["WSGIDaemonProcess g", "python home", "htdocs"]),
    "python-home-relative": ("WSGIDaemonProcess g python-home=venv", ["python-home", "venv"]),
    "home-missing": ("WSGIDaemonProcess g home=/nonexistent-dir", ["home", "/nonexistent-dir"]),
    "env-file-missing": ("WSGIDaemonProcess g env-file=/nonexistent-file", ["env-file", "/nonexistent-file"]),
    "env-without-equals": ("WSGIDaemonProcess g env=NAME", ["env", "NAME"]),
    "environment-value": ("WSGIDaemonProcess g environment=dirty", ["environment", "dirty"]),
    "duplicate-group": ("WSGIDaemonProcess g\nWSGIDaemonProcess g", ["WSGIDaemonProcess", "g"]),
    "flag": ("WSGIPassAuthorization maybe", ["WSGIPassAuthorization", "maybe", "On"]),
    "reloading-flag": ("WSGIScriptReloading sometimes", ["WSGIScriptReloading", "sometimes", "On"]),
    "alias-option": ("WSGIScriptAlias / {apps}/inspect.wsgi color=blue", ["WSGIScriptAlias", "color"]),
    "alias-match-regex": ("WSGIScriptAliasMatch ^/( {apps}/inspect.wsgi", ["WSGIScriptAliasMatch"]),
    "alias-no-script": ("WSGIScriptAlias /", ["WSGIScriptAlias"]),
    "missing-script": ("WSGIScriptAlias / {apps}/none.wsgi", ["WSGIScriptAlias", "none.wsgi"]),
    "socket-prefix-in-location": ("<Location /x>\nWSGISocketPrefix /x\n</Location>", ["WSGISocketPrefix", "not allowed"]),
    "daemon-in-directory": ("<Directory />\nWSGIDaemonProcess x\n</Directory>", ["WSGIDaemonProcess", "not allowed"]),
}  # fmt: skip


@pytest.mark.ours
@pytest.mark.parametrize("name", CASES)
def test_error(server: Apache, name: str) -> None:
    """R5, R13: exit status 1; the message names directive, value and what would be right."""
    if name.startswith(("root", "unknown-")) and os.geteuid() != 0:
        pytest.skip("user= is only applied by root")
    config, words = CASES[name]
    server.error_log.unlink(missing_ok=True)
    code, text = server.configtest(config)
    assert code != 0, f"accepted: {config}\n{text}"
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    assert not server.processes()


@pytest.mark.ours
@pytest.mark.parametrize("name", ["python-home-missing", "missing-script", "unknown-user"])
def test_first_start_fails(apache, name: str) -> None:
    """R5: the same is an error at a first start; nothing is left."""
    if name == "unknown-user" and os.geteuid() != 0:
        pytest.skip("user= is only applied by root")
    config, words = CASES[name]
    server = apache(config, start=False)
    server.log.allow(".")
    code, text = server.start_expecting_failure()
    assert code != 0 and all(word in text for word in words), text


@pytest.mark.ours
def test_old_python_is_refused(server: Apache) -> None:
    """R18: CPython before 3.10 is refused with version and remedy."""
    old = old_python()
    if old is None:
        pytest.skip("no CPython before 3.10 on this machine")
    python = product.relocate(pathlib.Path(old) / "bin" / "python3") if not product.reachable(old) else None
    home = str(python.parent.parent) if python else old
    server.error_log.unlink(missing_ok=True)
    code, text = server.configtest(f"WSGIDaemonProcess g python-home={home}\n" + ALIAS)
    assert code != 0 and re.search(r"MWR\d{4}", text) and "3.9" in text and "3.10" in text and home in text


@pytest.mark.ours
@pytest.mark.parametrize(
    ("word", "implementation", "version", "free_threaded", "bits", "libc"),
    [
        ("pypy", "pypy", "3.10.14", 0, 64, "glibc 2.36"),
        ("free-threaded", "cpython", "3.13.0", 1, 64, "glibc 2.36"),
        ("32 bit", "cpython", "3.11.0", 0, 32, "glibc 2.36"),
        ("musl", "cpython", "3.11.0", 0, 64, "musl"),
    ],
)
def test_other_pythons_are_refused(
    server: Apache, word: str, implementation: str, version: str, free_threaded: int, bits: int, libc: str
) -> None:
    """R18: PyPy, free-threaded builds, another word size or libc: refused with a code (told by a stand-in script)."""
    home = server.prefix / f"fake-{bits}-{len(libc)}-{free_threaded}-{len(implementation)}"
    facts = (
        f"implementation={implementation}\nversion={version}\nabiflags={'t' * free_threaded}\n"
        f"free_threaded={free_threaded}\nbits={bits}\nsoabi=x\nlibc={libc}\nend\n"
    )
    (home / "bin").mkdir(parents=True, exist_ok=True)
    script = home / "bin" / "python"
    script.write_text("#!/bin/sh\ncat <<'E'\n" + facts + "E\n")
    script.chmod(0o755)
    server.error_log.unlink(missing_ok=True)
    status, text = server.configtest(f"WSGIDaemonProcess g python-home={home}\n" + ALIAS)
    assert status != 0 and re.search(r"MWR\d{4}", text) and word in text and str(home) in text, text


@pytest.mark.ours
def test_interpreter_is_reported(apache) -> None:
    """R5: each interpreter runs once at the start; version and ABI are printed."""
    server = apache(GOOD, log_level="info")
    assert server.log.wait(r"cpython 3\.\d+\.\d+ \(")
    assert look(server)["process_group"] == "g"


@pytest.mark.ours
@pytest.mark.parametrize("name", ["python-home-missing", "unknown-user", "missing-script"])
def test_restart_is_only_a_warning(apache, name: str) -> None:
    """R5: what would be an error is a warning in a graceful restart; that group answers 503, others go on."""
    if name == "unknown-user" and os.geteuid() != 0:
        pytest.skip("user= is only applied by root")
    server = apache(GOOD.replace("Alias / ", "Alias /good "))
    assert look(server, "/good")["process_group"] == "g"
    config, words = CASES[name]
    broken = config.replace("WSGIDaemonProcess g ", "WSGIDaemonProcess broken ").replace("Alias / ", "Alias /broken ")
    server.config += broken + "\n"
    if "WSGIDaemonProcess" in broken:
        server.config += (
            "WSGIScriptAlias /broken {apps}/inspect.wsgi process-group=broken application-group=%{GLOBAL}\n"
        )
    server.write_config()
    server.expect_log(words[-1])
    server.allow_log(r"MWR0\d{3}")
    server.graceful()
    assert look(server, "/good")["process_group"] == "g"
    r = server.get("/broken")
    if name == "missing-script":
        assert r.status in (404, 500, 503)
    else:
        assert r.status == 503 and r.header("Retry-After")
    assert look(server, "/good")["process_group"] == "g"


@pytest.mark.ours
def test_syntax_error_in_a_restart_is_httpds(apache) -> None:
    """R5: `apache2 -t` beside a live server changes nothing (processes, sockets)."""
    server = apache(GOOD)
    before = look(server)["pid"]
    sockets = sorted(server.sockets())
    code, _ = server.configtest(GOOD)
    assert code == 0
    code, _ = server.configtest(CASES["threads-word"][0])
    assert code != 0
    assert look(server)["pid"] in {before, *(p.pid for p in server.processes())}
    assert sorted(server.sockets()) == sockets
    server.write_config(GOOD)
