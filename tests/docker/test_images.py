"""The images: an application in two lines (D1, D2), how a container behaves (D5 to D10), what is refused (D17)."""

from __future__ import annotations

import io
import json
import threading
import zipfile

import pytest
import yaml

from harness import docker, product
from harness.docker import Container
from harness.express import Words
from harness.http import Response
from harness.load import Load
from harness.wait import wait_until

#: nothing a container could do without
HARDENED = ("--read-only", "--tmpfs", "/run/mod-wsgi-rs", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
#: answered by the server itself
READY = "/-/mod-wsgi-rs/ready"


def test_two_lines(onbuild: str, image: str, start) -> None:
    """D2: two lines are a whole Dockerfile; requirements go into a virtual environment."""
    files = docker.tree(product.ROOT / "examples" / "flask")
    files["Dockerfile"] = f'FROM {onbuild}\nCMD ["app:app"]\n'
    docker.build(image, files)
    c = start(image, options=HARDENED).ready()
    assert "<h1>Hello, world</h1>" in c.get("/").text
    assert c.exec("id", "-u").strip() == "1001" and c.exec("id", "-g").strip() == "0"
    assert c.exec("python", "-c", "import flask; print(flask.__file__)").startswith("/opt/venv/")
    # Cached: another application with the same requirements takes the layer of the dependencies.
    files["app.py"] = str(files["app.py"], "utf-8").replace("Hello, ", "Good day, ")
    again = docker.build(image, files)
    assert "Using cache" in again or "CACHED" in again
    assert "pip install" not in again and "Collecting" not in again
    assert c.stop() == 0


def wheel(name: str, source: str) -> bytes:
    """A wheel of one module."""
    buffer = io.BytesIO()
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr(f"{name}.py", source)
        z.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        z.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{about}/RECORD", f"{name}.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n")
    return buffer.getvalue()


@pytest.mark.long
def test_hello_and_wheelhouse(onbuild: str, image: str, start) -> None:
    """D2, D15: a script without any dependency; then what lies in wheelhouse alone is installed, without an index."""
    files = docker.tree(product.ROOT / "examples" / "hello")
    files["Dockerfile"] = f'FROM {onbuild}\nCMD ["app.wsgi"]\n'
    docker.build(image, files)
    assert start(image, options=HARDENED).ready().get().text.startswith("Hello from Python 3.")
    files["wheelhouse/greeting-1.0-py3-none-any.whl"] = wheel("greeting", "WORD = 'Good day'\n")
    script = str(files["app.wsgi"], "utf-8")
    files["app.wsgi"] = "import greeting\n" + script.replace('"Hello from', '"{greeting.WORD} from')
    docker.build(image, files, "--build-arg", "PIP_INDEX_URL=http://127.0.0.1:9/simple")
    c = start(image, options=HARDENED).ready()
    assert c.get().text.startswith("Good day from Python 3.")
    assert c.exec("python", "-c", "import greeting; print(greeting.__file__)").startswith("/opt/venv/")


@pytest.mark.long
def test_two_lines_without_buildkit(onbuild: str, image: str, start) -> None:
    """D2: the builder that engines had before BuildKit takes the same two lines."""
    files = docker.tree(product.ROOT / "examples" / "flask")
    files["Dockerfile"] = f'FROM {onbuild}\nCMD ["app:app"]\n'
    said = docker.build(image, files, env={"DOCKER_BUILDKIT": "0"})
    assert "Step 1/" in said
    assert "<h1>Hello, world</h1>" in start(image).ready().get("/").text


@pytest.mark.parametrize(
    "user",
    [pytest.param("1001", marks=pytest.mark.long), "54321", pytest.param("54321:65432", marks=pytest.mark.long)],
)
def test_user_and_read_only_root(probe: str, start, user: str) -> None:
    """D5: any user, a read-only root, no capability, no new privileges, the default seccomp profile."""
    c = start(probe, options=(*HARDENED, "--tmpfs", "/var/tmp", "-v", "/data", "--user", user)).ready()
    v = json.loads(c.get().body)
    assert v["uid"] == int(user.split(":")[0]) and v["gid"] == int((user + ":0").split(":")[1])
    assert int(v["capabilities"], 16) == 0 and v["no_new_privs"] == "1" and v["seccomp"] == "2"
    # A body that is spooled to a file.
    body = b"x" * (2 << 20)
    assert json.loads(c.get("/body", method="POST", body=body).body) == {"length": len(body)}
    # The place of the application's own files is writable for group 0, not for others.
    c.exec("touch", "/data/kept", status=1 if v["gid"] else 0)
    c.exec("touch", "/app/changed", status=1)
    assert c.stop() == 0
    assert "MWR" not in c.logs()


def test_server(probe: str, words: Words, start) -> None:
    """D1, N5: the image runs its server without being told which. D10: readiness is off, its URL the application's."""
    c = start(probe).ready()
    assert json.loads(c.get(READY).body)["uid"] == 1001
    assert c.get().header("Server").startswith(words.name)
    # the engine passes on what is written a little later
    wait_until(lambda: f"\n{words.name} " in c.output("stdout"), 10, "the server's name on the standard output")


def test_stop_drains(probe: str, start) -> None:
    """D6: TERM to the first process: a request in flight is answered, and the end is in time and orderly."""
    c = start(probe).ready()
    answers: list[Response] = []
    client = threading.Thread(target=lambda: answers.append(c.get("/slow?seconds=2", timeout=20)))
    client.start()
    wait_until(lambda: "slow request begun" in c.logs(), 10, "the request runs", interval=0.05)
    assert c.stop(10) == 0
    client.join(20)
    assert answers and answers[0].status == 200 and answers[0].complete


def test_hup_loads_anew(probe: str, start) -> None:
    """D6: HUP to the first process reaches the server: new workers, and no request is lost."""
    c = start(probe).ready()
    wait_until(lambda: "Serving" in c.output("stdout"), 20, "it has been announced")
    pid = lambda: json.loads(c.get().body)["pid"]
    before = pid()
    with Load(c.port, clients=2) as load:
        load.more(20)
        docker.run("kill", "-s", "HUP", c.id)
        wait_until(lambda: pid() != before, 30, "another worker answers", interval=0.05)
        load.more(20)
    assert not load.bad, load.bad[:5]


def test_first_process_reaps(probe: str, start) -> None:
    """D6: processes that are left to the first one do not stay as zombies."""
    c = start(probe).ready()
    first = c.exec("cat", "/proc/1/comm").strip()
    assert first == "mod-wsgi-rs"
    c.get("/orphan")
    # A process whose parent ends at once, beside the server.
    docker.run("exec", c.id, "sh", "-c", "(sleep 0.2 &)")
    script = "import glob; print(sum(' Z ' in open(f).read() for f in glob.glob('/proc/[0-9]*/stat')))"
    wait_until(lambda: "sleep" not in docker.run("top", c.id), 10, "the orphans end", interval=0.1)
    wait_until(lambda: c.exec("python3", "-c", script).strip() == "0", 10, "no zombie stays", interval=0.1)


def test_variables_files_and_environment(base: str, words: Words, image: str, start) -> None:
    """D7, D8: precedence command line, server_args, variable; environment files; values reach os.environ; the hook start."""
    files = {
        **docker.tree(product.TESTS / "docker" / "apps" / "probe"),
        ".mod-wsgi-rs/server_args": "--threads 3\n--setenv A 'b c'\n",
        ".mod-wsgi-rs/env": "# defaults\nCOLOUR=blue\nSHAPE=round\nMOD_WSGI_RS_LOG_LEVEL=info\n",
        ".mod-wsgi-rs/start": "#!/bin/sh\necho hook start sees $COLOUR\n",
        ".mod-wsgi-rs/deploy": "#!/bin/sh\necho hook deploy sees $SHAPE\nexit 7\n",
        "Dockerfile": f'FROM {base}\nCOPY . /app\nCMD ["app.wsgi"]\n',
    }
    docker.build(image, files)
    variables = {"COLOUR": "red", "MOD_WSGI_RS_THREADS": "9", "WEB_CONCURRENCY": "2", "PORT": "8000"}
    options = [o for name, value in variables.items() for o in ("-e", f"{name}={value}")]
    c = start(image, options=tuple(options)).ready()
    v = json.loads(c.get().body)
    assert v["environ"]["COLOUR"] == "red" and v["environ"]["SHAPE"] == "round" and v["multiprocess"] is True
    assert "hook start sees red" in c.output("stdout")
    config = c.exec("cat", f"/run/mod-wsgi-rs/server/{words.configuration}")
    assert "processes=2 threads=3 " in config and words.log_level("info") in config
    assert words.setenv("A", "b c") in config
    # One-off: the hook deploy and nothing else; its status is that of the container.
    once = start(image, "--deploy")
    assert once.wait() == 7 and once.output("stdout").strip() == "hook deploy sees round"


def test_limits(probe: str, words: Words, start) -> None:
    """D9: processes from the limits of the container, said in one line."""
    c = start(probe, options=("--cpus", "0.5", "--memory", "256m")).ready()
    said = [line for line in c.logs().splitlines() if "memory limit" in line]
    assert len(said) == 1 and said[0].startswith(
        "mod-wsgi-rs: 1 process: processors 1, memory limit 256 MiB, application "
    ), said
    assert said[0].endswith("max-rss 235929K")
    two = start(probe, options=("--cpus", "2", "--memory", "1g")).ready()
    assert "mod-wsgi-rs: 2 processes: processors 2, memory limit 1024 MiB" in two.logs()
    config = two.exec("cat", f"/run/mod-wsgi-rs/server/{words.configuration}")
    assert "processes=2 " in config and "max-rss=471859K" in config
    # Memory for one only, of an application that needs much.
    one = start(probe, options=("--cpus", "2", "--memory", "150m", "-e", "BALLAST=60")).ready()
    assert "mod-wsgi-rs: 1 process: processors 2, memory limit 150 MiB, application " in one.logs()


def requests(c: Container) -> list[int]:
    """What each worker has counted."""
    status = json.loads(c.exec("mod-wsgi-rs", "ctl", "status", "--json"))
    return [w["requests"] for p in status["pools"] for w in p["workers"]]


def test_health_and_readiness(probe: str, start) -> None:
    """D10: life is the supervisor's answer, readiness that of the server once the application is loaded; neither is a request."""
    variables = (
        "-e",
        "MOD_WSGI_RS_READINESS=1",
        "-e",
        "MOD_WSGI_RS_THREADS=1",
        "-e",
        "MOD_WSGI_RS_QUEUE_LIMIT=1",
        "-e",
        "WEB_CONCURRENCY=1",
    )
    c = start(probe, options=(*HARDENED, *variables, "--health-interval", "1s")).ready(READY)
    wait_until(lambda: c.state()["Health"]["Status"] == "healthy", 30, "healthy", interval=0.2)  # type: ignore[index]
    # The launcher asks once whether the application answers.
    wait_until(lambda: sum(requests(c)) == 1, 10, "the launcher has asked", interval=0.2)
    for _ in range(5):
        c.exec("mod-wsgi-rs", "ctl", "live")
        assert c.get(READY).text == "ready\n"
    assert sum(requests(c)) == 1
    assert c.get().status == 200
    wait_until(lambda: sum(requests(c)) == 2, 10, "a request is counted", interval=0.2)
    c.exec("mod-wsgi-rs", "ctl", "live", "--server-root", "/tmp", status=1)
    # A full queue is no reason to end the container, but one to send requests elsewhere.
    clients = [threading.Thread(target=lambda: c.get("/slow?seconds=4", timeout=30)) for _ in range(2)]
    for client in clients:
        client.start()
    wait_until(lambda: c.get(READY).status == 503, 4, "not ready", interval=0.05)
    c.exec("mod-wsgi-rs", "ctl", "live")
    for client in clients:
        client.join(30)
    assert c.get(READY).status == 200


def test_not_ready_while_it_stops(probe: str, start) -> None:
    """D10, D13: told to stop, by the engine or by what Kubernetes runs first, it sends load balancers away and serves on."""
    variables = ("-e", "MOD_WSGI_RS_READINESS=1", "-e", "MOD_WSGI_RS_STOP_DELAY=600")
    stopping = start(probe, options=(*HARDENED, *variables)).ready(READY)
    wait_until(lambda: "Serving" in stopping.output("stdout"), 20, "it has been announced")
    docker.run("kill", "-s", "TERM", stopping.id)
    wait_until(lambda: stopping.get(READY).status == 503, 10, "not ready", interval=0.05)
    assert stopping.get().status == 200
    # The second one ends the delay.
    assert stopping.stop() == 0
    deployment = yaml.safe_load((product.ROOT / "docker" / "kubernetes" / "base" / "deployment.yaml").read_text())
    (web,) = deployment["spec"]["template"]["spec"]["containers"]
    told = start(probe, options=(*HARDENED, *variables)).ready(READY)
    docker.run("exec", "-d", told.id, *web["lifecycle"]["preStop"]["exec"]["command"])
    wait_until(lambda: told.get(READY).status == 503, 10, "not ready", interval=0.05)
    assert told.get().status == 200


def test_json_access_log(probe: str, start) -> None:
    """D6: on request each line of the access log is a JSON object, on standard output; everything else is not there."""
    c = start(probe, options=(*HARDENED, "-e", "MOD_WSGI_RS_ACCESS_LOG_FORMAT=json")).ready()
    answer = c.get('/log?"quoted"', headers=[("User-Agent", "a \\ in it")])
    lines = lambda: [json.loads(line) for line in c.output("stdout").splitlines() if line.startswith("{")]
    wait_until(lambda: any(r["target"] == '/log?"quoted"' for r in lines()), 10, "the request is logged", interval=0.1)
    record = next(r for r in lines() if r["target"] == '/log?"quoted"')
    assert (
        record["request_id"] == json.loads(answer.body)["request_id"]
        and record["status"] == 200
        and record["user_agent"] == "a \\ in it"
    )
    assert 0 <= record["queue_seconds"] < 30 and 0 <= record["app_seconds"] <= record["seconds"] + 0.001
    # What the application prints stays apart.
    assert "that" in c.output("stderr") and not any(line.startswith("{") for line in c.output("stderr").splitlines())


#: as in the containers of engines that leave the kernel's default
NARROW = ("--sysctl", "net.ipv4.ip_unprivileged_port_start=1024", "--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE")


def test_port_80(probe: str, start) -> None:
    """D6: port 80. This engine lets everybody have it; where one does not, the container says what helps."""
    c = start(probe, options=(*HARDENED, "--cap-add", "NET_BIND_SERVICE", "-e", "PORT=80"), port=80).ready()
    v = json.loads(c.get().body)
    # It has the port, but not by the capability, which engines give to root alone.
    assert v["uid"] == 1001 and int(v["capabilities"], 16) == 0
    c = start(probe, options=(*NARROW, "-e", "PORT=80"), port=80)
    assert c.wait() != 0
    lines = c.logs().splitlines()
    assert (
        len(lines) == 1
        and "MWR0611" in lines[0]
        and lines[0].endswith("net.ipv4.ip_unprivileged_port_start to 80 or less")
    )


def test_port_80_by_capability(probe: str, start) -> None:
    """D6: where nobody else gets the port, the capability as an ambient one does; the health check still reaches the supervisor."""
    root = ("--user", "0", "--cap-add", "SETUID", "--cap-add", "SETGID", "--cap-add", "DAC_OVERRIDE", "-e", "PORT=80")
    given = ["--reuid", "1001", "--regid", "0", "--clear-groups"]
    given += ["--inh-caps", "+net_bind_service", "--ambient-caps", "+net_bind_service"]
    options = (*HARDENED, *NARROW, *root, "--health-interval", "1s", "--entrypoint", "setpriv")
    c = start(probe, *given, "mod-wsgi-rs", "container", "app.wsgi", options=options, port=80).ready()
    v = json.loads(c.get().body)
    # CAP_NET_BIND_SERVICE is number 10.
    assert v["uid"] == 1001 and int(v["capabilities"], 16) == 1 << 10 and v["no_new_privs"] == "1"
    wait_until(lambda: c.state()["Health"]["Status"] == "healthy", 30, "healthy", interval=0.2)  # type: ignore[index]
    assert c.stop() == 0


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        (["absent.wsgi"], [], ["MWR0602", "absent.wsgi", "not found"]),
        ([], ["-e", "MOD_WSGI_RS_THREADS=many"], ["MWR0600", "MOD_WSGI_RS_THREADS", "'many'"]),
        ([], ["-e", "MOD_WSGI_RS_THREDS=1"], ["MWR0600", "MOD_WSGI_RS_THREADS is --threads"]),
        (["app.wsgi", "--no-such-option"], [], ["MWR0600", "--no-such-option"]),
    ],
)
def test_refusals(probe: str, start, command: list[str], options: list[str], words: list[str]) -> None:
    """D17: a wrong command or variable ends the container with one clear line and a status."""
    c = start(probe, *command, options=tuple(options))
    assert c.wait() == 2 or words[0] == "MWR0602"
    assert c.state()["ExitCode"] != 0
    lines = [line for line in c.logs().splitlines() if line]
    assert all(w in "\n".join(lines) for w in words), lines
    if "--no-such-option" not in command:
        assert len([x for x in lines if "MWR" in x]) == 1 and len(lines) == 1, lines


def test_failing_hook(base: str, image: str, start) -> None:
    """D8: a failing hook ends the container with its output."""
    files = {
        **docker.tree(product.TESTS / "docker" / "apps" / "probe"),
        ".mod-wsgi-rs/start": "#!/bin/sh\necho what went wrong >&2\nexit 3\n",
        "Dockerfile": f'FROM {base}\nCOPY . /app\nCMD ["app.wsgi"]\n',
    }
    docker.build(image, files)
    c = start(image)
    assert c.wait() == 1
    assert "what went wrong" in c.logs() and "MWR0640" in c.logs() and "status 3" in c.logs()


def test_failing_requirements(onbuild: str, image: str) -> None:
    """D17: requirements that cannot be had end the build with one clear line."""
    files = {"app.wsgi": "", "requirements.txt": "no-such==1.0\n", "wheelhouse/README": ""}
    files["Dockerfile"] = f'FROM {onbuild}\nENV PIP_NO_INDEX=1\nCMD ["app.wsgi"]\n'
    said = docker.build(image, files, "--build-arg", "PIP_INDEX_URL=http://127.0.0.1:9/simple", status=1)
    assert "mod-wsgi-rs-build: the dependencies cannot be installed" in said


@pytest.mark.long
def test_hook_build_and_project(onbuild: str, image: str, start) -> None:
    """D2, D8: pyproject.toml alone names dependencies; the hook build runs once they are there; files of any mode are readable."""
    files: dict[str, str | bytes] = {
        "pyproject.toml": '[project]\nname = "shop"\nversion = "1"\ndependencies = ["six>=1.16"]\n',
        "app.wsgi": "import six\n" + str(docker.tree(product.TESTS / "docker" / "apps" / "probe")["app.wsgi"], "utf-8"),
        ".mod-wsgi-rs/build": "#!/bin/sh\npython -c 'import six; print(six.__version__)' > built.txt\nchmod 600 built.txt\n",
        "Dockerfile": f'FROM {onbuild}\nCMD ["app.wsgi"]\n',
    }
    docker.build(image, files)
    c = start(image).ready()
    assert c.exec("cat", "/app/built.txt").startswith("1.")
    files[".mod-wsgi-rs/build"] = "#!/bin/sh\necho no assets >&2\nexit 4\n"
    said = docker.build(image, files, status=1)
    assert "no assets" in said and "hook .mod-wsgi-rs/build ended with status 4" in said


@pytest.mark.long
def test_worker_out_of_memory(probe: str, start) -> None:
    """D15: a worker that reaches the container's limit is ended by the kernel: its client gets an error, the site goes on."""
    # One process, so that it is the one that is asked first and is ended.
    options = ("--memory", "200m", "--memory-swap", "200m", "-e", "MOD_WSGI_RS_MAX_RSS=0", "-e", "WEB_CONCURRENCY=1")
    c = start(probe, options=options).ready()
    worker = json.loads(c.get().body)["pid"]
    answer = c.get("/eat?mib=400", timeout=60)
    assert answer.status == 502, answer.text
    wait_until(lambda: c.get().status == 200, 30, "the site answers again", interval=0.2)
    assert json.loads(c.get().body)["pid"] != worker
    state = c.state()
    assert state["Running"] and state["Pid"]
    said = [line for line in c.logs().splitlines() if f"worker {worker}" in line and "signal 9" in line]
    assert said, c.logs()
