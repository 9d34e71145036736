"""What is in the images: size, no compiler, the list of parts, the same list of files again (D1, D4)."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import tempfile
import uuid

import pytest

from harness import docker, product

pytestmark = pytest.mark.long
#: Debian's package of each server
PACKAGE = {"apache": "apache2-bin", "nginx": "nginx"}


def size(image: str) -> int:
    return int(docker.run("image", "inspect", "-f", "{{.Size}}", image))


def symbols(image: str) -> int:
    """Bytes of what is there for debuggers in our own programs and libraries; a release has none."""
    container = docker.run("create", image).strip()
    try:
        with tempfile.TemporaryDirectory(prefix="mwr-size-") as directory:
            docker.run("cp", f"{container}:/usr/local/lib/mod-wsgi-rs", directory)
            objects = [
                p for p in pathlib.Path(directory).rglob("*") if p.is_file() and p.read_bytes()[:4] == b"\x7fELF"
            ]
            assert len(objects) == 3, objects
            before = sum(p.stat().st_size for p in objects)
            subprocess.run(["strip", *objects], check=True, capture_output=True)
            return before - sum(p.stat().st_size for p in objects)
    finally:
        docker.run("rm", container)


def files(image: str) -> list[str]:
    """Path, type, mode and owner of everything in it."""
    script = (
        "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /dev -prune -o -printf '%p %y %m %U:%G %l\\n'"
    )
    return sorted(docker.run("run", "--rm", "--user", "0", "--entrypoint", "sh", image, "-c", script).splitlines())


def test_size_and_no_compiler(base: str, server: str, suite: str) -> None:
    """D1: at most 1.3 times Debian slim with the same server and Python; no compiler, no pip, OCI labels."""
    plain = f"mwr-test-{uuid.uuid4().hex[:12]}:plain"
    packages = f"{PACKAGE[server]} ca-certificates python3"
    line = f"apt-get update -q && apt-get install -q -y --no-install-recommends {packages}"
    docker.build(
        plain, {"Dockerfile": f"FROM debian:{suite}-slim\nRUN {line} && rm -rf /var/lib/apt/lists/* /var/cache/apt/*\n"}
    )
    try:
        own, other = size(base) - symbols(base), size(plain)
    finally:
        docker.run("rmi", "-f", plain, status=None)
    print(f"size {own / 1e6:.0f} MB without symbols, {own / other:.2f} of Debian with {server} and Python")
    assert own <= 1.3 * other
    script = "for p in cc gcc c++ make cargo pip pip3; do ! command -v $p || exit 1; done"
    docker.run("run", "--rm", "--entrypoint", "sh", base, "-c", script)
    labels = json.loads(docker.run("image", "inspect", "-f", "{{json .Config.Labels}}", base))
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.version"] not in ("", "0")


def test_list_of_parts(base: str, server: str) -> None:
    """D4: the list names Debian's packages, crates and Python packages, and is the same again."""
    command = [str(product.ROOT / "docker" / "sbom.py"), base]
    run = lambda: subprocess.run(command, env={**os.environ, "DOCKER": docker.DOCKER}, capture_output=True, text=True)
    first = run()
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    purls = [c["purl"] for c in document["components"]]
    assert document["bomFormat"] == "CycloneDX" and len(set(purls)) == len(purls)
    for start in (
        f"pkg:deb/debian/{PACKAGE[server]}@",
        "pkg:deb/debian/libc6@",
        "pkg:cargo/serde_json@",
        "pkg:cargo/mod-wsgi-core@",
    ):
        assert any(p.startswith(start) for p in purls), start
    # Tools of the build are no part of it.
    assert not any(p.startswith(("pkg:cargo/bindgen@", "pkg:cargo/proptest@")) for p in purls)
    assert run().stdout == first.stdout


@pytest.mark.timeout(900)
def test_same_files_again(base: str, server: str, suite: str) -> None:
    """D4: built again from the same inputs, without any cache and with the versions pinned, the image has the same list of
    files."""
    again = f"mwr-test-{uuid.uuid4().hex[:12]}:again"
    names = (PACKAGE[server], "ca-certificates", "python3")
    query = ("run", "--rm", "--entrypoint", "dpkg-query", base, "-W", "-f", "${Package}=${Version} ", *names)
    arguments = [f"BASE=debian:{suite}-slim", f"PACKAGES={docker.run(*query).strip()}"]
    if server == "nginx":
        arguments += ["SERVER=nginx", "SERVER_PACKAGE=nginx", f"MODULE=mod-wsgi-rs:nginx-module-{suite}",
                      "MODULE_FILE=ngx_http_wsgi_rs_module.so"]  # fmt: skip
    subprocess.run(
        [
            *(docker.DOCKER, "build", "--no-cache", "-q", "-t", again),
            *(word for a in arguments for word in ("--build-arg", a)),
            str(product.ROOT / "docker" / "server"),
        ],
        env={**os.environ, **docker.BUILDKIT},
        check=True,
        capture_output=True,
    )
    try:
        assert files(again) == files(base)
    finally:
        docker.run("rmi", "-f", again, status=None)
