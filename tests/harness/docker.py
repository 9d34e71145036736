"""Docker as people use it: images built from Dockerfiles, containers that always end, nothing removed but what a test made."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import uuid

from . import http, product
from .wait import wait_until


def _client() -> str:
    """The client: DOCKER, else one on PATH that builds with BuildKit (many times quicker here), else the first."""
    named = os.environ.get("DOCKER")
    found = [shutil.which("docker", path=d) for d in os.environ.get("PATH", "").split(os.pathsep)]
    for path in [] if named else dict.fromkeys(f for f in found if f):
        version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        major = re.search(r"version (\d+)\.", version)
        # Before 23 the client brings it, from then on the plugin buildx does.
        if major and int(major[1]) < 23:
            return path
        if subprocess.run([path, "buildx", "version"], capture_output=True).returncode == 0:
            return path
    return named or "docker"


DOCKER = _client()
#: for the clients in which it is not the default
BUILDKIT = {} if "DOCKER_BUILDKIT" in os.environ or DOCKER == "docker" else {"DOCKER_BUILDKIT": "1"}
#: on everything a test makes, so that it can be found should a run be cut off
LABEL = f"mod-wsgi-rs-test={uuid.uuid4().hex[:12]}"


@functools.cache
def engine() -> str:
    """Why there is no engine to test with; empty: there is one."""
    if not shutil.which(DOCKER):
        return f"no Docker engine: {DOCKER} is not installed"
    done = subprocess.run([DOCKER, "info", "-f", "{{.ServerVersion}}"], capture_output=True, text=True, timeout=60)
    return "" if done.returncode == 0 else f"no Docker engine: {done.stderr.strip() or done.stdout.strip()}"


def run(*args: str, status: int | None = 0, timeout: float = 600, stdin: str | None = None) -> str:
    """One docker command: its standard output; both streams in the message when it ends otherwise than expected."""
    done = subprocess.run([DOCKER, *args], input=stdin, capture_output=True, text=True, timeout=timeout)
    assert status is None or done.returncode == status, (
        f"docker {' '.join(args)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


@functools.cache
def images(suite: str) -> str:
    """Sees to it that the images of that Debian hold the build under test; the suffix of their names."""
    root = tempfile.mkdtemp(prefix="mwr-product-")
    profile = "dev" if product.target().name == "debug" else product.target().name
    try:
        install = ["make", "-s", "install", f"DESTDIR={root}", f"PROFILE={profile}"]
        subprocess.run(install, cwd=product.ROOT, check=True, capture_output=True)
        done = subprocess.run(
            ["docker/images.sh", suite],
            cwd=product.ROOT,
            env={**os.environ, **BUILDKIT, "DOCKER": DOCKER, "PREBUILT": root, "NO_BUILDER": "1"},
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    assert done.returncode == 0, f"docker/images.sh {suite}\n{done.stdout}\n{done.stderr}"
    return f"-{suite}"


def build(tag: str, files: dict[str, str | bytes], *args: str, status: int = 0, env: dict[str, str] = BUILDKIT) -> str:
    """Builds an image from these files; everything the build has said."""
    with tempfile.TemporaryDirectory(prefix="mwr-context-") as directory:
        for name, content in files.items():
            path = pathlib.Path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
            if content[:2] in ("#!", b"#!"):
                path.chmod(0o755)
        done = subprocess.run(
            [DOCKER, "build", "--label", LABEL, "-t", tag, *args, directory],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, **env},
        )
    said = f"{done.stdout}\n{done.stderr}"
    assert (done.returncode == 0) == (status == 0), f"docker build: {done.returncode}\n{said}"
    return said


def tree(directory: pathlib.Path) -> dict[str, str | bytes]:
    """The files of an example."""
    found = (p for p in directory.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {str(p.relative_to(directory)): p.read_bytes() for p in found}


@dataclasses.dataclass
class Container:
    """A container that publishes its port on a free port of the loopback address."""

    id: str
    #: where the server listens inside
    inside: int = 8000

    @functools.cached_property
    def port(self) -> int:
        return int(run("port", self.id, str(self.inside)).split()[0].rsplit(":", 1)[1])

    def state(self) -> dict[str, object]:
        return json.loads(run("inspect", "-f", "{{json .State}}", self.id))

    def logs(self) -> str:
        done = subprocess.run([DOCKER, "logs", self.id], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout

    def output(self, stream: str) -> str:
        """What it has written to "stdout" or "stderr"."""
        done = subprocess.run([DOCKER, "logs", self.id], capture_output=True, text=True)
        return getattr(done, stream)

    def exec(self, *args: str, status: int | None = 0) -> str:
        return run("exec", self.id, *args, status=status)

    def ready(self, target: str = "/", deadline: float = 60) -> Container:
        """Waits for a 200."""

        def up() -> bool:
            assert self.state()["Running"], f"the container has ended\n{self.logs()}"
            try:
                return http.fetch(self.port, target, timeout=10).status == 200
            except OSError:
                return False
            except AssertionError:
                # The port is published before anything listens behind it.
                return False

        try:
            wait_until(up, deadline, f"{target} is answered", interval=0.1)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.logs()}") from None
        return self

    def get(self, target: str = "/", **kw: object) -> http.Response:
        return http.fetch(self.port, target, **kw)  # type: ignore[arg-type]

    def wait(self, deadline: float = 60) -> int:
        """The exit status, once it has ended by itself."""
        wait_until(lambda: not self.state()["Running"], deadline, "the container ends", interval=0.1)
        return int(self.state()["ExitCode"])  # type: ignore[call-overload]

    def stop(self, seconds: int = 10) -> int:
        run("stop", "-t", str(seconds), self.id)
        return int(self.state()["ExitCode"])  # type: ignore[call-overload]

    def remove(self) -> None:
        run("rm", "-f", "-v", self.id, status=None)
