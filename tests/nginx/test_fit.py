"""Whether the module fits an nginx (N6): the answer, and the remedy."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess

import pytest

from harness import nginx, product


def check(module: pathlib.Path | None = None, binary: str | None = None) -> tuple[int, str]:
    """What check-nginx says of the module and the nginx under test, or of others."""
    pair = ["--module", str(module or product.nginx_module()), "--nginx-executable", binary or product.nginx()]
    command = [str(product.binary()), "check-nginx", *pair]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_the_module_fits() -> None:
    """N6: the module and the nginx of this machine."""
    code, said = check()
    version = ".".join(map(str, nginx.version()))
    assert code == 0 and f"fits nginx {version}" in said, said


def other(tmp_path: pathlib.Path, what: bytes, by: bytes) -> pathlib.Path:
    """A copy of the module with other bytes."""
    data = product.nginx_module().read_bytes()
    assert what in data and len(what) == len(by)
    path = tmp_path / "module.so"
    path.write_bytes(data.replace(what, by))
    return path


def signature() -> bytes:
    """What nginx compares of the options it was built with, as the module has it."""
    found = re.search(rb"\0(\d,\d,\d,[01]{20,})\0", product.nginx_module().read_bytes())
    assert found
    return found[1]


def test_a_module_with_other_options_is_told_of(tmp_path: pathlib.Path) -> None:
    """N6: nginx says `not binary compatible`; what to do about it is said beside that."""
    s = signature()
    module = other(tmp_path, s, s[:-1] + (b"0" if s[-1:] == b"1" else b"1"))
    code, said = check(module)
    assert code == 1 and "is not binary compatible" in said, said
    assert "NGINX_SOURCE_DIR" in said and "make build" in said


def test_a_module_of_another_version_is_told_of(tmp_path: pathlib.Path) -> None:
    """N6: nginx says `version … instead of …`; what to do about it is said beside that."""
    a, b, c = nginx.version()
    number = a * 1_000_000 + b * 1000 + c
    # the record: two unset indices, no name, two spares, the version
    before = b"\xff" * 16 + b"\0" * 24
    module = other(tmp_path, before + number.to_bytes(8, "little"), before + (number + 1).to_bytes(8, "little"))
    code, said = check(module)
    assert code == 1 and f"version {number + 1} instead of {number}" in said, said
    assert "NGINX_SOURCE_DIR" in said and "make build" in said


def others() -> list[str]:
    """The nginx of other versions that scripts/nginx-versions.sh has built."""
    found = map(str, sorted((product.ROOT / "build" / "nginx-versions").glob("*/source/objs/nginx")))
    return [b for b in found if nginx.version(b)[:2] != nginx.version()[:2]]


@pytest.mark.long
def test_another_nginx_is_told_of() -> None:
    """N6: a module, and an nginx of another version that really runs."""
    if not others():
        pytest.skip("no other nginx here: see scripts/nginx-versions.sh")
    for binary in others():
        found = ".".join(map(str, nginx.version(binary)))
        code, said = check(binary=binary)
        assert code == 1 and f"does not fit nginx {found} ({binary})" in said, said
        assert re.search(r"module \".*\" version \d+ instead of \d+", said)
        assert "NGINX_SOURCE_DIR" in said and "make build" in said


def install(tmp_path: pathlib.Path, path: str) -> tuple[int, str]:
    """`make install` of the build under test, into a directory of the test's own."""
    env = {**os.environ, "PATH": path, "CARGO_TARGET_DIR": str(product.target().parent)}
    profile = "dev" if product.target().name == "debug" else product.target().name
    command = ["make", "-C", str(product.ROOT), "install", f"DESTDIR={tmp_path}", f"PROFILE={profile}"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_what_is_installed_is_checked(tmp_path: pathlib.Path) -> None:
    """N6: `make install` says how nginx loads the module, and whether it fits the one that is there."""
    if "MWR_NGINX" in os.environ or "MWR_NGINX_SO" in os.environ:
        pytest.skip("the installed nginx is not the one under test")
    code, said = install(tmp_path, os.environ["PATH"])
    assert code == 0, said
    assert "load_module /usr/local/lib/mod-wsgi-rs/ngx_http_wsgi_rs_module.so;" in said
    installed = tmp_path / "usr/local/lib/mod-wsgi-rs/ngx_http_wsgi_rs_module.so"
    assert f"{installed} fits nginx {'.'.join(map(str, nginx.version()))}" in said, said


def test_an_installed_module_that_does_not_fit_is_told_of(tmp_path: pathlib.Path) -> None:
    """N6: the installation is whole, and says that nginx will refuse the module, and what to do."""
    if "MWR_NGINX" in os.environ or "MWR_NGINX_SO" in os.environ:
        pytest.skip("the installed nginx is not the one under test")
    # an nginx of another version, as far as anybody can tell from what it says
    s = tmp_path / "bin" / "nginx"
    s.parent.mkdir()
    s.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -t ]; then echo "nginx: [emerg] module \\"x.so\\" version 1022001 instead of 1999009" >&2; exit 1; fi\n'
        f'"{product.nginx()}" "$@" 2>&1 | sed "s,^nginx version: .*,nginx version: nginx/1.999.9," >&2\n'
    )
    s.chmod(0o755)
    code, said = install(tmp_path, f"{s.parent}:{os.environ['PATH']}")
    assert code == 0 and "load_module" in said, said
    assert "does not fit nginx 1.999.9" in said and "make build" in said, said
