"""Whether the module fits an nginx (N6): the answer, and the remedy."""

from __future__ import annotations

import pathlib
import re
import subprocess

from harness import nginx, product


def check(*args: str) -> tuple[int, str]:
    command = [str(product.binary()), "check-nginx", *args]
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
    code, said = check("--module", str(module))
    assert code == 1 and "is not binary compatible" in said, said
    assert "NGINX_SOURCE_DIR" in said and "make build" in said


def test_a_module_of_another_version_is_told_of(tmp_path: pathlib.Path) -> None:
    """N6: nginx says `version … instead of …`; what to do about it is said beside that."""
    a, b, c = nginx.version()
    number = a * 1_000_000 + b * 1000 + c
    # the record: two unset indices, no name, two spares, the version
    before = b"\xff" * 16 + b"\0" * 24
    module = other(tmp_path, before + number.to_bytes(8, "little"), before + (number + 1).to_bytes(8, "little"))
    code, said = check("--module", str(module))
    assert code == 1 and f"version {number + 1} instead of {number}" in said, said
    assert "NGINX_SOURCE_DIR" in said and "make build" in said
