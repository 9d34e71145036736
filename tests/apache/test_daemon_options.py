"""Options of WSGIDaemonProcess, seen from inside the application."""

from __future__ import annotations

import os
import pwd
import time

import pytest

from harness import procs, product
from harness.apache import Apache
from harness.inspect import look

OTHER = "games"  # an account that every Debian has, with a home of its own

CONFIG = """
WSGIApplicationGroup %{GLOBAL}
WSGIDaemonProcess plain
WSGIDaemonProcess user user=games group=games
WSGIDaemonProcess mask umask=0027
WSGIDaemonProcess home home={apps}/dir
WSGIDaemonProcess locale lang=C.UTF-8 locale=C.UTF-8
WSGIDaemonProcess pypath python-path={apps}/lib1:{apps}/lib2
WSGIDaemonProcess named display-name=%{GROUP}
WSGIDaemonProcess literal-name display-name=mwr-test-name
WSGIDaemonProcess single threads=1
WSGIDaemonProcess three processes=3 threads=4
WSGIDaemonProcess "quoted name" home="{apps}/with space"
"""
OURS = """
WSGIDaemonProcess env env=PLAIN=value env="QUOTED=a b c" env=EMPTY= env=EQUALS=a=b
WSGIDaemonProcess envfile env-file={apps}/env.file env=FROM_BOTH=env
WSGIDaemonProcess clean environment=clean env=ONLY=this
"""
MOUNT = "WSGIScriptAlias /{0} {{apps}}/inspect.wsgi process-group={0} application-group=%{{GLOBAL}}\n"
NAMES = ["plain", "user", "mask", "home", "locale", "pypath", "named", "literal-name", "single", "three"]
ENV_FILE = """# a comment
FROM_FILE=file value
export EXPORTED=exported

FROM_BOTH=file
QUOTED="quoted value"
SINGLE='single $HOME'
"""
INHERITED = {
    "MWR_INHERITED": "from httpd", "APACHE_RUN_DIR": "/x", "APACHE_LOG_DIR": "/y", "NOTIFY_SOCKET": "/z", "INVOCATION_ID": "1",
    "JOURNAL_STREAM": "2", "LISTEN_FDS": "0", "LISTEN_PID": "1", "CREDENTIALS_DIRECTORY": "/c", "TZ": "UTC",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(shared) -> Apache:
    names = NAMES + (["env", "envfile", "clean"] if product.is_ours() else [])
    config = CONFIG + (OURS if product.is_ours() else "") + "".join(MOUNT.format(n) for n in names)
    config += 'WSGIScriptAlias /quoted {apps}/inspect.wsgi process-group="quoted name" application-group=%{GLOBAL}\n'
    apache = Apache(config, env=INHERITED)
    for d in ("lib1", "lib2", "with space"):
        (apache.apps / d).mkdir()
    apache.write("lib1/extra.pth", "{apps}/from-pth\n")
    (apache.apps / "from-pth").mkdir()
    apache.write("env.file", ENV_FILE)
    return shared(apache)


def test_defaults(server: Apache) -> None:
    """R10: without options: the server's user, umask 022, wsgi.multiprocess False, multithread True."""
    v = look(server, "/plain")
    if os.geteuid() == 0:
        entry = pwd.getpwnam(product.server_user()[0])
        assert (v["uid"], v["gid"]) == (entry.pw_uid, entry.pw_gid)
        assert v["environ"]["HOME"] == entry.pw_dir
    assert (v["multiprocess"], v["multithread"]) == (False, True)
    assert v["umask"] == 0o022
    assert v["argv"] == ["mod_wsgi"], "as in the reference"
    assert v["signal_mask"].strip("0") == ""


@pytest.mark.ours
def test_streams_and_descriptors(server: Apache) -> None:
    """DESIGN 9: stdin is /dev/null; nothing of httpd (listeners, logs) is inherited."""
    v = look(server, "/plain")
    assert v["stdin"] == "/dev/null"
    worker = v["pid"]
    for fd in os.listdir(f"/proc/{worker}/fd"):
        try:
            target = os.readlink(f"/proc/{worker}/fd/{fd}")
        except FileNotFoundError:
            continue
        assert "/logs/" not in target and "httpd" not in target, (fd, target)
    inodes = {os.readlink(f"/proc/{server.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{server.pid}/fd")}
    listeners = {i for i in inodes if i.startswith("socket:")}
    theirs = {os.readlink(f"/proc/{worker}/fd/{fd}") for fd in os.listdir(f"/proc/{worker}/fd")}
    assert not listeners & theirs


@pytest.mark.root
def test_user_and_group(server: Apache) -> None:
    """R10: user= and group=, with that user's HOME, USER, LOGNAME, groups and home directory."""
    entry = pwd.getpwnam(OTHER)
    v = look(server, "/user")
    assert (v["uid"], v["gid"]) == (entry.pw_uid, entry.pw_gid)
    assert 0 not in v["groups"]
    assert v["environ"]["HOME"] == entry.pw_dir
    if product.is_ours():
        assert v["environ"]["USER"] == v["environ"]["LOGNAME"] == OTHER


def test_umask(server: Apache) -> None:
    """R10: umask= is octal."""
    assert look(server, "/mask")["umask"] == 0o027


def test_home(server: Apache) -> None:
    """R10: home= is the working directory and first on sys.path."""
    v = look(server, "/home")
    assert v["cwd"] == f"{server.apps}/dir" and v["path"][0] == f"{server.apps}/dir"


def test_quoted(server: Apache) -> None:
    """R10: names and values with spaces."""
    v = look(server, "/quoted")
    assert v["process_group"] == "quoted name" and v["cwd"] == f"{server.apps}/with space"


def test_locale(server: Apache) -> None:
    """R10: lang= and locale=."""
    v = look(server, "/locale")
    assert v["environ"]["LANG"] == v["environ"]["LC_ALL"] == "C.UTF-8"
    assert "UTF-8" in v["encoding"].upper().replace("UTF8", "UTF-8")


def test_python_path(server: Apache) -> None:
    """R10: python-path= comes first, with .pth files processed as site.addsitedir does."""
    path = look(server, "/pypath")["path"]
    first, second, extra = (path.index(f"{server.apps}/{d}") for d in ("lib1", "lib2", "from-pth"))
    standard = next(i for i, p in enumerate(path) if p.startswith(("/usr/lib/python3", "/usr/local/lib/python3")))
    assert first < second < standard and extra < standard


def test_display_name(server: Apache) -> None:
    """R10: display-name= is what ps shows; %{GROUP} becomes (wsgi:name)."""

    def shown(target: str) -> str:
        p = procs.look(look(server, target)["pid"])
        assert p
        return " ".join(p.cmdline)

    assert shown("/named").startswith("(wsgi:named)")
    assert shown("/literal-name").startswith("mwr-test-name")


def test_threads_and_processes(server: Apache) -> None:
    """R10: threads=1 is wsgi.multithread False; processes= makes wsgi.multiprocess True and so many workers."""
    v = look(server, "/single")
    assert (v["multithread"], v["multiprocess"]) == (False, False)
    v = look(server, "/three")
    assert (v["multithread"], v["multiprocess"]) == (True, True)


def test_environment_is_inherited(server: Apache) -> None:
    """DESIGN 9: workers have the environment httpd was started with."""
    e = look(server, "/plain")["environ"]
    assert e["MWR_INHERITED"] == "from httpd" and e["TZ"] == "UTC" and e["PATH"]


@pytest.mark.ours
def test_deny_list(server: Apache) -> None:
    """DESIGN 9, pitfall S18: less what belongs to the server itself."""
    e = look(server, "/plain")["environ"]
    assert not [k for k in e if k in INHERITED.keys() - {"MWR_INHERITED", "TZ"}]
    assert not [k for k in e if k.startswith("MOD_WSGI_RS_")], "our own hand-over is gone"


@pytest.mark.ours
def test_env(server: Apache) -> None:
    """R10: env=K=V reaches os.environ, with spaces when quoted, empty, and with '='."""
    e = look(server, "/env")["environ"]
    assert e["PLAIN"] == "value" and e["QUOTED"] == "a b c" and e["EMPTY"] == "" and e["EQUALS"] == "a=b"
    assert e["MWR_INHERITED"] == "from httpd"


@pytest.mark.ours
def test_env_file(server: Apache) -> None:
    """R10: env-file= reads KEY=VALUE lines; env= wins over it."""
    e = look(server, "/envfile")["environ"]
    assert e["FROM_FILE"] == "file value" and e["FROM_BOTH"] == "env" and e["QUOTED"] == "quoted value"


@pytest.mark.ours
def test_clean_environment(server: Apache) -> None:
    """R10: environment=clean inherits nothing."""
    e = look(server, "/clean")["environ"]
    assert "MWR_INHERITED" not in e and e["ONLY"] == "this"
    allowed = {"ONLY", "PATH", "USER", "LOGNAME", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "SHELL", "TZ"}
    assert e.keys() <= allowed, e.keys() - allowed


@pytest.mark.ours
def test_secrets_are_not_on_command_lines(server: Apache) -> None:
    """DESIGN 9: values of env= never appear on a command line."""
    look(server, "/env")
    for p in server.processes():
        assert not any("value" in a or "a b c" in a for a in p.cmdline), p


@pytest.mark.ours
def test_virtual_environment_prefix(server: Apache) -> None:
    """R18: without python-home Debian's python3 runs, with argv[0] of its own."""
    v = look(server, "/plain")
    assert v["prefix"] == v["base_prefix"] == "/usr" and v["executable"].startswith("/usr/bin/python3")


@pytest.mark.ours
def test_socket_prefix(apache) -> None:
    """R10: WSGISocketPrefix places the run directory; a prefix of 150 bytes works (pitfall S20)."""
    server = apache(start=False)
    deep = server.prefix / ("d" * 70) / ("e" * 70)
    deep.mkdir(parents=True)
    for d in (deep, deep.parent):
        d.chmod(0o755)
    server.config = (f"WSGISocketPrefix {deep}/sock\nWSGIDaemonProcess g\nWSGIProcessGroup g\n"
                     "WSGIApplicationGroup %{GLOBAL}\nWSGIScriptAlias / {apps}/inspect.wsgi\n")  # fmt: skip
    server.start()
    assert look(server)["process_group"] == "g"
    assert any(s.startswith(f"{deep}/sock") for s in server.sockets())


@pytest.mark.ours
@pytest.mark.root
def test_run_directory_is_private(server: Apache) -> None:
    """DESIGN 9: ctl.sock and workers' sockets are the server user's, 0600; directories nobody else's to write."""
    look(server, "/plain")
    found = server.sockets()
    uid = pwd.getpwnam(product.server_user()[0]).pw_uid
    assert any(s.endswith("/ctl.sock") for s in found) and len(found) > 1
    for path in found:
        info = os.stat(path)
        assert info.st_mode & 0o777 == 0o600 and info.st_uid == uid, path
        assert os.stat(os.path.dirname(path)).st_mode & 0o022 == 0


@pytest.mark.ours
def test_startup_is_quick(server: Apache) -> None:
    """R19: a request that comes while its group starts waits for the worker instead of failing."""
    began = time.monotonic()
    server.graceful()
    assert look(server, "/three")["process_group"] == "three"
    assert time.monotonic() - began < 15
