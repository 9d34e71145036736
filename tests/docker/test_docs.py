"""docs/docker.md: its commands, in their order, as they are written (D18)."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import pytest

from harness import docker, product
from harness.ports import Port

PAGE = product.ROOT / "docs" / "docker.md"


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_commands(postgres: str) -> None:
    """D18: every command of the page is run, and each must succeed."""
    text = PAGE.read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    # What is fenced is run: there is no other kind of block that could hide a command.
    assert len(blocks) == text.count("\n```sh\n") == text.count("\n```") // 2
    claim = Port()
    with tempfile.TemporaryDirectory(prefix="mwr-docs-") as path:
        bin = pathlib.Path(path, "bin")
        bin.mkdir()
        # `docker compose` where only the older program is installed, and the client that builds with BuildKit.
        plugin = subprocess.run([docker.DOCKER, "compose", "version"], capture_output=True).returncode == 0
        program = docker.DOCKER if "/" in docker.DOCKER else shutil.which(docker.DOCKER)
        old = "" if plugin else 'if [ "$1" = compose ]; then shift; exec docker-compose "$@"; fi\n'
        (bin / "docker").write_text(f'#!/bin/sh\n{old}exec {program} "$@"\n')
        (bin / "docker").chmod(0o755)
        root = pathlib.Path(path, "product")
        profile = "dev" if product.target().name == "debug" else product.target().name
        install = ["make", "-s", "install", f"DESTDIR={root}", f"PROFILE={profile}"]
        subprocess.run(install, cwd=product.ROOT, check=True, capture_output=True)
        script = "\n".join(blocks).replace("127.0.0.1:8000", f"127.0.0.1:{claim.number}")
        # The page's reader is in the clone there; the script stays out of it, since it writes files.
        script = script.replace("make images", 'make -C "$PROJECT" images').replace(
            "docker/sbom.py", '"$PROJECT"/docker/sbom.py'
        )
        env = {
            **os.environ,
            **docker.BUILDKIT,
            "PATH": f"{bin}:{os.environ['PATH']}",
            # Images of the build under test, instead of one that is compiled in an image.
            "PREBUILT": str(root),
            "PROJECT": str(product.ROOT),
            "COMPOSE_DOCKER_CLI_BUILD": "1",
            "COMPOSE_PROJECT_NAME": "mwrtestdocs",
            "SITE_PORT": f"127.0.0.1:{claim.number}",
            "POSTGRES_IMAGE": postgres,
        }
        try:
            done = subprocess.run(
                ["bash", "-euxo", "pipefail", "-c", script],
                cwd=path,
                env=env,
                capture_output=True,
                text=True,
                timeout=1500,
            )
        finally:
            docker.run("rm", "-f", "shop", status=None)
            docker.run("volume", "rm", "-f", "shop-spool", status=None)
            docker.run("rmi", "-f", "shop", "mod-wsgi-rs-example-django", status=None)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    for expected in (
        "Hello from Berlin",
        "migrating for Paris",
        "Hello from Paris",
        "memory limit 256 MiB",
        "supervisor ",
        "\nready\n",
        '"target":"/orders"',
        '"queue_seconds":',
    ):
        assert expected in done.stdout, f"{expected!r} is missing\n{done.stdout[-3000:]}"
