"""Three replicas of docker/stack.yml under load (D12, D16)."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator

import pytest

from harness import docker, http, product
from harness.ports import Port
from harness.wait import wait_until

pytestmark = pytest.mark.long

CLIENTS = 4
APP = """
import os, socket
VERSION = {version!r}
def application(environ, start_response):
    secret = open(os.environ["SECRET_KEY_FILE"]).read()
    body = f"{{VERSION}} {{socket.gethostname()}} {{secret}}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def no_mesh() -> str:
    """Why the kernel cannot do what the routing mesh needs; empty: it can."""
    # The directory is there once the module is, which may be loaded when the first service asks for it.
    if pathlib.Path("/proc/net/ip_vs").exists():
        return ""
    configuration = pathlib.Path("/proc/config.gz")
    if configuration.exists() and b"\n# CONFIG_IP_VS is not set\n" in gzip.decompress(configuration.read_bytes()):
        return "this kernel is built without IPVS (CONFIG_IP_VS is not set)"
    if not shutil.which("modprobe"):
        return "IPVS is not loaded, and modprobe is not installed"
    done = subprocess.run(["modprobe", "ip_vs"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"IPVS cannot be loaded: {done.stderr.strip()}"


@dataclasses.dataclass
class Stack:
    name: str
    port: int
    directory: pathlib.Path

    def deploy(self, image: str, mesh: bool, front: str) -> None:
        text = (
            (product.ROOT / "docker" / "stack.yml")
            .read_text()
            .replace(
                "site_secret_key:\n    external", "site_secret_key:\n    name: " + self.name + "_key\n    external"
            )
        )
        if not mesh:
            text = re.sub(r"    ports:\n(?:      .*\n)+", "", text).replace(
                "    deploy:\n", "    deploy:\n      endpoint_mode: dnsrr\n", 1
            )
            text = text.replace(
                "\nsecrets:\n",
                f"""
  front:
    image: {front}
    entrypoint: ["python3", "/front.py", "tasks.web", "8000"]
    healthcheck: {{disable: true}}
    ports: [{{target: 8000, published: {self.port}, protocol: tcp, mode: host}}]

secrets:
""",
                1,
            )
        path = self.directory / "stack.yml"
        path.write_text(text)
        env = {**os.environ, "SITE_IMAGE": image, "SITE_PORT": str(self.port)}
        done = subprocess.run(
            [docker.DOCKER, "stack", "deploy", "--resolve-image", "never", "-c", str(path), self.name],
            env=env,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def tasks(self) -> list[dict[str, str]]:
        """Tasks that run."""
        text = docker.run("service", "ps", f"{self.name}_web", "-f", "desired-state=running", "--format", "{{json .}}")
        found = [json.loads(line) for line in text.splitlines()]
        return [t for t in found if t["CurrentState"].startswith("Running")]

    def updated(self) -> bool:
        state = docker.run("service", "inspect", f"{self.name}_web", "--format", "{{json .UpdateStatus}}")
        status = json.loads(state)
        assert not status or ("rollback" not in status["State"] and status["State"] != "paused"), status
        return bool(status) and status["State"] == "completed"

    def containers(self) -> list[str]:
        return docker.run(
            "ps", "-q", "--no-trunc", "-f", f"label=com.docker.swarm.service.name={self.name}_web"
        ).split()


class Clients:
    """Clients that ask until the context ends, each request on a connection of its own."""

    def __init__(self, port: int):
        self.port = port
        self.answers: collections.Counter[str] = collections.Counter()
        self.lost: list[str] = []
        self._end = threading.Event()
        self._lock = threading.Lock()

    def _ask(self) -> None:
        while not self._end.is_set():
            try:
                r = http.fetch(self.port, "/", timeout=20)
                good = r.status == 200 and r.complete
                text = r.text if good else f"{r.status} {r.ended}"
            except (OSError, AssertionError) as e:
                good, text = False, repr(e)
            with self._lock:
                if good:
                    self.answers[text.split()[0]] += 1
                else:
                    self.lost.append(text)
            # Two processors carry load and replicas: room for the replicas to start.
            self._end.wait(0.02)

    def __enter__(self) -> Clients:
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for t in self._threads:
            t.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for t in self._threads:
            t.join(30)

    def seen(self) -> int:
        with self._lock:
            return sum(self.answers.values())

    def more(self, n: int, deadline: float = 60) -> None:
        """Waits for that many more answers."""
        target = self.seen() + n
        wait_until(lambda: self.seen() >= target, deadline, f"{n} more answers; lost so far {self.lost[:3]}")


@pytest.fixture
def swarm() -> Iterator[None]:
    """This engine as a swarm of one node; one that is already in a swarm is left alone."""
    if docker.run("info", "-f", "{{.Swarm.LocalNodeState}}").strip() != "inactive":
        pytest.skip("this engine is already part of a swarm")
    docker.run("swarm", "init", "--advertise-addr", "127.0.0.1")
    try:
        yield
    finally:
        docker.run("swarm", "leave", "--force", timeout=120)


@pytest.fixture
def versions(base: str) -> Iterator[tuple[str, str, str]]:
    """Two versions of the application, and the stand-in of the mesh."""
    unique = uuid.uuid4().hex[:12]
    names = (f"mwr-test-{unique}:1", f"mwr-test-{unique}:2", f"mwr-test-{unique}:front")
    for version, name in enumerate(names[:2], 1):
        files: dict[str, str | bytes] = {"app.wsgi": APP.format(version=f"v{version}")}
        files["Dockerfile"] = (
            f'FROM {base}\nCOPY . /app\nHEALTHCHECK --interval=1s --timeout=5s --start-period=30s CMD ["mod-wsgi-rs", "ctl", "live"]\nCMD ["app.wsgi"]\n'
        )
        docker.build(name, files)
    front = (product.TESTS / "docker" / "apps" / "front.py").read_bytes()
    docker.build(names[2], {"front.py": front, "Dockerfile": f"FROM {base}\nCOPY front.py /front.py\n"})
    yield names
    for name in names:
        docker.run("rmi", "-f", name, status=None)


@pytest.mark.timeout(600)
def test_replicas(swarm: None, versions: tuple[str, str, str]) -> None:
    """D16: a rolling update loses nothing; a killed replica loses at most what ran in it; a drained node stops orderly."""
    reason = no_mesh()
    mesh = not reason
    print("routing mesh:", f"a stand-in: {reason}" if reason else "Swarm's")
    claim = Port()
    with tempfile.TemporaryDirectory(prefix="mwr-stack-") as directory:
        stack = Stack(f"mwrtest{uuid.uuid4().hex[:8]}", claim.number, pathlib.Path(directory))
        docker.run("secret", "create", f"{stack.name}_key", "-", stdin="s3cret")
        try:
            stack.deploy(versions[0], mesh, versions[2])
            wait_until(lambda: len(stack.tasks()) == 3, 90, "three replicas run", interval=0.5)

            def answers() -> bool:
                try:
                    return http.fetch(stack.port, "/", timeout=10).text.split()[2:] == ["s3cret"]
                except (OSError, AssertionError, IndexError):
                    return False

            wait_until(answers, 60, "the stack answers with the secret", interval=0.2)
            hosts = lambda: {http.fetch(stack.port, "/").text.split()[1] for _ in range(12)}
            wait_until(lambda: len(hosts()) == 3, 30, "all replicas are asked", interval=0.5)

            # A new version of the application: no request is lost, and both versions have answered under load.
            with Clients(stack.port) as clients:
                clients.more(50)
                stack.deploy(versions[1], mesh, versions[2])
                wait_until(stack.updated, 240, "the update is complete", interval=0.5)
                clients.more(50)
            print("update:", dict(clients.answers), "lost", len(clients.lost))
            assert clients.lost == []
            assert clients.answers["v1"] >= 50 and clients.answers["v2"] >= 50

            # Those of the former version may go on for their delay, and are no replicas to kill.
            wait_until(lambda: len(stack.containers()) == 3, 60, "the former replicas have ended", interval=0.5)

            # A killed replica: what was on its way to it is lost, and what the mesh sends there until Swarm has noticed.
            with Clients(stack.port) as clients:
                clients.more(50)
                before = set(stack.containers())
                victim = sorted(before)[0]
                docker.run("kill", victim)
                wait_until(
                    lambda: len(stack.tasks()) == 3 and victim not in stack.containers(),
                    90,
                    "it is replaced",
                    interval=0.5,
                )
                clients.more(50)
            print("killed replica:", dict(clients.answers), "lost", len(clients.lost), set(clients.lost))
            # Every loss is a connection that broke or was refused, never an answer that was wrong or cut.
            assert all("Error(" in text for text in clients.lost), clients.lost[:5]
            assert len(clients.lost) <= clients.seen() // 10

            # A drained node: with one engine nothing can take over, but every replica ends in order.
            ending = stack.containers()
            node = docker.run("node", "ls", "-q").split()[0]
            docker.run("node", "update", "--availability", "drain", node)
            wait_until(lambda: not stack.containers(), 90, "the node is empty", interval=0.5)
            for container in ending:
                state = docker.run(
                    "inspect", "-f", "{{.State.ExitCode}} {{.State.OOMKilled}}", container, status=None
                ).strip()
                assert state in ("0 false", ""), f"{container}: {state}"
        finally:
            docker.run("stack", "rm", stack.name, timeout=120)
            wait_until(
                lambda: not docker.run("ps", "-aq", "-f", f"label=com.docker.stack.namespace={stack.name}").split(),
                60,
                "the stack is gone",
                interval=0.5,
            )
            docker.run("secret", "rm", f"{stack.name}_key", status=None)
            docker.run("volume", "rm", f"{stack.name}_spool", status=None)
