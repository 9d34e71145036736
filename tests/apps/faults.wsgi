"""The application of the fault suite: it notes each request's id before it does anything else, so that a test can prove
what has run, where, and how often. The first segment of PATH_INFO picks a function below; the query is `id=…&key=value`.
Runs unchanged on the peers."""

import hashlib
import json
import os
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SCRATCH = os.path.join(os.path.dirname(HERE), "scratch")
NOTES = os.open(os.path.join(SCRATCH, "ids"), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
KEPT = []


def query(environ):
    return dict(p.partition("=")[::2] for p in environ["QUERY_STRING"].split("&") if p)


def begun(environ, q):
    """One line a request, whole: O_APPEND, shorter than a page."""
    os.write(NOTES, b"%s %d\n" % (q.get("id", "-").encode(), os.getpid()))


def payload(name, size):
    """The body that belongs to an id; harness/counted.py knows it too."""
    line = name.encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


def answer(start_response, body, *fields):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *fields])
    return [body]


def exact(environ, start_response, q):
    return answer(start_response, payload(q["id"], int(q.get("size", "100"))))


def slow(environ, start_response, q):
    time.sleep(float(q["seconds"]))
    return exact(environ, start_response, q)


def stream(environ, start_response, q):
    """No length, several pieces."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    body = payload(q["id"], int(q["size"]))
    for i in range(0, len(body), 5000):
        yield body[i : i + 5000]
        time.sleep(float(q.get("pause", "0.001")))


def post(environ, start_response, q):
    body = environ["wsgi.input"].read()
    return answer(start_response, b"%d %s" % (len(body), hashlib.sha256(body).hexdigest().encode()))


def gate(environ, start_response, q):
    """Until the test makes the file, or ends."""
    paths = [os.path.join(SCRATCH, q["gate"]), os.path.join(SCRATCH, "over")]
    end = time.monotonic() + 60
    while not any(map(os.path.exists, paths)) and time.monotonic() < end:
        time.sleep(0.005)
    return exact(environ, start_response, q)


def midway(environ, start_response, q):
    """A piece of the answer, then the gate, then the rest."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"first"
    gate(environ, lambda *a: None, q)
    yield b"second"


def big(environ, start_response, q):
    """`size` MiB, a block at a time."""
    n = int(q["size"])
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(n << 20))])
    block = bytes(range(256)) * 256
    for _ in range(n * 16):
        yield block


def crash(environ, start_response, q):
    """Ends the process in the way of `how`, with `delay`."""
    import ctypes
    import signal

    time.sleep(float(q.get("delay", "0")))
    if q["how"] == "segv":
        ctypes.string_at(0)
    elif q["how"] == "abort":
        os.abort()
    elif q["how"] == "exit":
        os._exit(3)
    elif q["how"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif q["how"] == "memory":
        while True:
            KEPT.append(b"x" * (1 << 20))


def fork(environ, start_response, q):
    """Leaves a child of multiprocessing behind that holds whatever it inherited, then waits for the gate."""
    import multiprocessing

    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(float(q["seconds"]),))
    child.start()
    KEPT.append(child)
    with open(os.path.join(SCRATCH, "forked"), "a") as f:
        f.write("%d\n" % child.pid)
    return gate(environ, start_response, q)


def gil(environ, start_response, q):
    """Keeps the GIL in C code."""
    import ctypes

    with open(os.path.join(SCRATCH, "gil"), "a") as f:
        f.write("%d\n" % os.getpid())
    # PyDLL, unlike CDLL, does not release it.
    ctypes.PyDLL(None).usleep(int(float(q["seconds"]) * 1e6))
    return exact(environ, start_response, q)


LOCKS = threading.Lock(), threading.Lock()


def deadlock(environ, start_response, q):
    """Two of these, with order=01 and order=10, wait for each other for ever."""
    first, second = (LOCKS[int(c)] for c in q["order"])
    with first:
        time.sleep(0.2)
        with second:
            return exact(environ, start_response, q)


def pid(environ, start_response, q):
    return answer(start_response, b"%d" % os.getpid())


def fails(environ, start_response, q):
    """What the system refuses to this process, if anything."""
    import subprocess

    said = {}
    for name, do in {
        "fork": lambda: subprocess.run(["/bin/true"], check=True),
        "thread": lambda: threading.Thread(target=int).start(),
        "open": lambda: open("/dev/null").close(),
    }.items():
        try:
            do()
            said[name] = "done"
        except (OSError, RuntimeError) as e:
            said[name] = str(e)
    return answer(start_response, json.dumps(said).encode())


def inherit(environ, start_response, q):
    """What this process was given."""
    import resource
    import subprocess

    limits = {n: resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")}
    with open("/proc/self/status") as f:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in f if ":\t" in line)
    # What a program sees that the application starts with close_fds=False.
    child = subprocess.run(
        ["/bin/sh", "-c", "for f in /proc/$$/fd/*; do echo $f $(readlink $f); done"],
        close_fds=False, capture_output=True, text=True,
    )  # fmt: skip
    descriptors = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            descriptors[fd] = os.readlink("/proc/self/fd/" + fd)
        except OSError:
            continue
    said = {
        "status": status, "limits": limits, "environ": dict(os.environ), "descriptors": descriptors,
        "child": child.stdout.splitlines(), "cwd": os.getcwd(), "umask": os.umask(0o22),
        "groups": os.getgroups(), "nice": os.nice(0), "session": os.getsid(0), "root": os.readlink("/proc/self/root"),
    }  # fmt: skip
    os.umask(said["umask"])
    return answer(start_response, json.dumps(said).encode())


def application(environ, start_response):
    q = query(environ)
    begun(environ, q)
    return globals()[environ["PATH_INFO"].split("/")[-1]](environ, start_response, q)
