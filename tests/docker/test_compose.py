"""docker/compose.yml: Django with PostgreSQL and static files by one command (D11)."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import uuid

import pytest

from harness import docker, http, product
from harness.ports import Port
from harness.wait import wait_until

pytestmark = pytest.mark.long


def compose() -> list[str]:
    """The plugin, else the older program."""
    if subprocess.run([docker.DOCKER, "compose", "version"], capture_output=True).returncode == 0:
        return [docker.DOCKER, "compose"]
    old = shutil.which("docker-compose")
    if not old:
        pytest.skip("neither docker compose nor docker-compose is installed")
    return [old]


@pytest.mark.timeout(1150)
def test_django_with_postgresql(onbuild: str, postgres: str) -> None:
    """D11, D15: one command builds, migrates and serves; a note survives in PostgreSQL, static files come from the server."""
    claim = Port()
    project = f"mwrtest{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="mwr-compose-") as path:
        # The client that builds with BuildKit comes first for programs that call it.
        if "/" in docker.DOCKER:
            pathlib.Path(path, "docker").symlink_to(docker.DOCKER)
        env = {
            **os.environ,
            **docker.BUILDKIT,
            "COMPOSE_DOCKER_CLI_BUILD": "1",
            "PATH": f"{path}:{os.environ['PATH']}",
            "POSTGRES_IMAGE": postgres,
            "BASE_IMAGE": onbuild,
            "SITE_PORT": f"127.0.0.1:{claim.number}",
        }
        line = [*compose(), "-p", project, "-f", str(product.ROOT / "docker" / "compose.yml")]
        run = lambda *args: subprocess.run([*line, *args], env=env, capture_output=True, text=True, timeout=900)
        try:
            done = run("up", "--build", "-d")
            assert done.returncode == 0, done.stdout + done.stderr

            def up() -> bool:
                try:
                    return http.fetch(claim.number, "/", timeout=10).status == 200
                except (OSError, AssertionError):
                    return False

            try:
                wait_until(up, 120, "Django answers", interval=0.5)
            except AssertionError as e:
                raise AssertionError(f"{e}\n{run('logs').stdout[-6000:]}") from None
            page = http.fetch(claim.number, "/")
            cookie = (page.header("Set-Cookie") or "").split(";")[0]
            token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
            names = re.findall(r'<(?:input|textarea)[^>]* name="(\w+)"', page.text)
            assert token and cookie
            fields = {n: "kept" for n in names if n not in ("csrfmiddlewaretoken", "attachment")}
            body = "&".join(f"{n}={v}" for n, v in {**fields, "csrfmiddlewaretoken": token[1]}.items()).encode()
            headers = [("Cookie", cookie), ("Content-Type", "application/x-www-form-urlencoded")]
            assert http.fetch(claim.number, "/", method="POST", headers=headers, body=body).status == 302
            assert "kept" in http.fetch(claim.number, "/").text
            css = re.search(r'href="(/static/[^"]+\.css)"', page.text)
            assert css
            answer = http.fetch(claim.number, css[1])
            assert answer.status == 200 and (answer.header("Content-Type") or "").startswith("text/css")
            # The database keeps it when the site is made anew.
            assert run("up", "-d", "--force-recreate", "--no-deps", "web").returncode == 0
            wait_until(up, 60, "Django answers again", interval=0.5)
            assert "kept" in http.fetch(claim.number, "/").text
            assert [line for line in run("logs", "web").stdout.splitlines() if "MWR" in line] == []
        finally:
            run("down", "-v", "--rmi", "local", "--remove-orphans")
            docker.run("rmi", "-f", "mod-wsgi-rs-example-django", status=None)
