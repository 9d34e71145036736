"""What the worker's tests ask for, one function a path."""

import logging
import os
import signal
import sys
import threading
import time

COUNTS = threading.local()
CLOSED = []


class Closing:
    """An iterable with close(), which is noted."""

    def __init__(self, items, fail=None):
        self.items = iter(items)
        self.fail = fail

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.items)

    def close(self):
        CLOSED.append(True)
        print("close has run")
        if self.fail:
            raise self.fail


def hello(environ, start):
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def echo(environ, start):
    body = environ["wsgi.input"].read()
    start("200 OK", [("X-Length", environ.get("CONTENT_LENGTH", "none"))])
    return [body]


def lines(environ, start):
    source = environ["wsgi.input"]
    got = [source.read(0), source.readline(), source.readline(2), *source.readlines(4), b"|", *source]
    start("200 OK", [])
    return [repr(got).encode()]


def env(environ, start):
    start("200 OK", [])
    shown = {k: v for k, v in environ.items() if isinstance(v, (str, bool, int, tuple))}
    return [repr(shown).encode("utf-8", "surrogateescape")]


def stream(environ, start):
    start("200 OK", [])

    def parts():
        for i in range(3):
            yield b""
            yield b"part%d" % i

    return parts()


def slow_stream(environ, start):
    start("200 OK", [])
    yield b"first"
    time.sleep(0.3)
    yield b"second"


def ticks(environ, start):
    start("200 OK", [])

    def parts():
        while True:
            yield b"tick"
            time.sleep(0.1)

    return Closing(parts())


def big(environ, start):
    start("200 OK", [])
    return [b"a" * 100_000, b"b" * 200_000, b"c"]


def endless(environ, start):
    start("200 OK", [])

    def parts():
        while True:
            yield b"x" * 60_000

    return Closing(parts())


def write(environ, start):
    send = start("200 OK", [("X-How", "write")])
    send(b"one ")
    send(b"")
    send(b"two ")
    return [b"three"]


def nothing(environ, start):
    start("204 No Content", [])
    return []


def boom(environ, start):
    raise ValueError("boom\nsecond line \x1b[31m")


def late_boom(environ, start):
    start("200 OK", [])
    yield b"begun"
    raise ValueError("too late")


def leave(environ, start):
    sys.exit(3)


def closing(environ, start):
    start("200 OK", [])
    return Closing([b"a", b"b"])


def closing_fails(environ, start):
    start("200 OK", [])
    return Closing([b"a"], KeyError("in close"))


def closing_late(environ, start):
    start("200 OK", [])

    def parts():
        yield b"a"
        raise ValueError("half way")

    return Closing(parts())


def text(environ, start):
    start("200 OK", [])
    return ["text"]


def not_started(environ, start):
    return [b"x"]


def not_iterable(environ, start):
    start("200 OK", [])
    return 5


def bad_start(environ, start):
    arguments = {
        "status-type": (200, []),
        "status-form": ("20 OK", []),
        "status-text": ("200OK", []),
        "status-control": ("200 O\nK", []),
        "status-1xx": ("100 Continue", []),
        "headers-type": ("200 OK", ()),
        "headers-item": ("200 OK", [["a", "b"]]),
        "headers-pair": ("200 OK", [("a",)]),
        "name-type": ("200 OK", [(b"a", "b")]),
        "value-type": ("200 OK", [("a", 1)]),
        "name-token": ("200 OK", [("a b", "c")]),
        "name-colon": ("200 OK", [("a:b", "c")]),
        "value-newline": ("200 OK", [("a", "b\r\nc: d")]),
        "value-nul": ("200 OK", [("a", "b\0")]),
        "value-unicode": ("200 OK", [("a", "\u20ac")]),
        "hop": ("200 OK", [("Connection", "close")]),
        "length": ("200 OK", [("Content-Length", "-1")]),
        "exc-info": ("200 OK", [], 5),
    }[environ["PATH_INFO"].split("/")[2]]
    try:
        start(*arguments)
    except Exception as e:
        kind = type(e).__name__
        start("200 OK", [])
        return [kind.encode()]
    return [b"accepted"]


def status_only(environ, start):
    start("299", [("X-Caf\u00e9".replace("\u00e9", "e"), "caf\u00e9")])
    return (b"a", b"b")


def replaced(environ, start):
    start("200 OK", [("X-A", "1")])
    start("201 Created", [("X-B", "2")])
    return [b"x"]


def exc_info_before(environ, start):
    start("200 OK", [])
    try:
        raise ValueError("early")
    except ValueError:
        start("500 Oops", [], sys.exc_info())
    return [b"replaced"]


def exc_info_after(environ, start):
    send = start("200 OK", [])
    send(b"sent")
    try:
        raise ValueError("after the head")
    except ValueError:
        start("500 Oops", [], sys.exc_info())
    return [b"never"]


def twice_after(environ, start):
    start("200 OK", [])(b"sent")
    try:
        start("200 OK", [])
    except RuntimeError:
        return [b" refused"]
    return [b" accepted"]


def nap(environ, start):
    time.sleep(0.2)
    start("200 OK", [])
    return [b"awake"]


def file(environ, start):
    path = environ["QUERY_STRING"]
    f = open(path, "rb")
    f.seek(3)
    start("200 OK", [("Content-Length", environ["mod_wsgi.length"])] if "mod_wsgi.length" in environ else [])
    return environ["wsgi.file_wrapper"](f)


def unpassable(environ, start):
    r, w = os.pipe()
    os.write(w, b"from a pipe")
    os.close(w)
    start("200 OK", [])
    return environ["wsgi.file_wrapper"](os.fdopen(r, "rb"), 4)


def count(environ, start):
    COUNTS.n = getattr(COUNTS, "n", 0) + 1
    start("200 OK", [])
    return [f"{threading.current_thread().name} {COUNTS.n}".encode()]


def logs(environ, start):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    environ["wsgi.errors"].write("to errors\n")
    environ["wsgi.errors"].write("in ")
    environ["wsgi.errors"].write("pieces")
    sys.stdout.buffer.write(b"bytes \xff\n")
    print("surrogate \udcff")
    logging.getLogger("x").error("logged %s", "error\nwith two lines")
    logging.getLogger("x").critical("logged critical")
    start("200 OK", [])
    return [b""]


def flood(environ, start):
    start("200 OK", [])
    for i in range(20_000):
        print("flood", i, "x" * 100)
    return [b"done"]


def background(environ, start):
    def run():
        print("from a thread")

    t = threading.Thread(target=run)
    t.start()
    t.join()
    start("200 OK", [])
    return [b""]


def fork_returns(environ, start):
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        start("200 OK", [])
        return [b"parent"]
    start("200 OK", [])
    return [b"child"]


def fork_iterates(environ, start):
    start("200 OK", [])
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return iter([b"parent"])
    return iter([b"child"])


def fork_raises(environ, start):
    pid = os.fork()
    if not pid:
        raise ValueError("in the child")
    os.waitpid(pid, 0)
    start("200 OK", [])
    return [b"parent"]


def fork_prints(environ, start):
    pid = os.fork()
    if not pid:
        print("child to stdout")
        print("child to stderr", file=sys.stderr)
        os._exit(0)
    os.waitpid(pid, 0)
    start("200 OK", [])
    return [b""]


def fork_lists(environ, start):
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        fds = []
        for n in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{n}")
            except OSError:
                continue
            if "socket" in target or "epoll" in target or "memfd" in target:
                fds.append(target)
        os.write(w, repr(fds).encode())
        os._exit(0)
    os.close(w)
    os.waitpid(pid, 0)
    start("200 OK", [])
    return [os.read(r, 65536)]


def fork_ended(environ, start):
    """Ends children as early as can be: how many have not ended by it."""
    lasting = 0
    for _ in range(300):
        pid = os.fork()
        if not pid:
            time.sleep(30)
            os._exit(0)
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + 5
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > until:
                lasting += 1
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.001)
    start("200 OK", [])
    return [b"%d" % lasting]


def fork_sleeps(environ, start):
    pid = os.fork()
    if not pid:
        time.sleep(30)
        os._exit(0)
    start("200 OK", [])(str(pid).encode())
    time.sleep(30)
    return []


def subprocess_lists(environ, start):
    import subprocess

    start("200 OK", [])
    return [subprocess.run(["ls", "-l", "/proc/self/fd"], stdout=subprocess.PIPE).stdout]


def multi(environ, start):
    import multiprocessing

    context = multiprocessing.get_context(environ["QUERY_STRING"])
    with context.Pool(2) as pool:
        result = pool.map(abs, [-1, -2, -3])
    start("200 OK", [])
    return [repr(result).encode()]


def executor(environ, start):
    import concurrent.futures
    import multiprocessing

    context = multiprocessing.get_context(environ["QUERY_STRING"])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        result = pool.submit(abs, -7).result()
    start("200 OK", [])
    return [repr(result).encode()]


def late_work(environ, start):
    import atexit
    import concurrent.futures

    path = environ["QUERY_STRING"]

    def note(text):
        with open(path, "a") as f:
            f.write(text + "\n")

    def job():
        time.sleep(0.3)
        note("job")

    concurrent.futures.ThreadPoolExecutor(1).submit(job)
    atexit.register(note, "atexit")
    import mod_wsgi

    mod_wsgi.subscribe_shutdown(lambda name, **p: note(f"{name} {p['shutdown_reason']}"))
    start("200 OK", [])
    return [b""]


def sleep(environ, start):
    time.sleep(float(environ["QUERY_STRING"] or 0.5))
    start("200 OK", [])
    return [b"slept"]


def waits(environ, start):
    begun = time.perf_counter()
    for _ in range(20):
        time.sleep(0.0002)
    start("200 OK", [])
    return [str(time.perf_counter() - begun).encode()]


def kept(environ, start):
    CLOSED.append((environ["wsgi.input"], start))
    start("200 OK", [])
    return [b""]


def use_kept(environ, start):
    source, old = CLOSED.pop()
    names = []
    for what in (source.read, lambda: old("200 OK", [])):
        try:
            what()
            names.append("worked")
        except Exception as e:
            names.append(type(e).__name__)
    start("200 OK", [])
    return [" ".join(names).encode()]


def main_module(environ, start):
    import __main__

    start("200 OK", [])
    return [repr((hasattr(__main__, "__file__"), __main__.__spec__, sys.argv, sys.path, "MOD_WSGI_RS_PLAN" in os.environ)).encode()]


def prefix(environ, start):
    start("200 OK", [])
    return [repr((sys.prefix, sys.executable)).encode()]


def api(environ, start):
    import mod_wsgi

    mod_wsgi.request_data()["mine"] = 1
    found = {
        "version": mod_wsgi.version,
        "group": mod_wsgi.process_group,
        "threads": mod_wsgi.threads_per_process,
        "data": list(mod_wsgi.active_requests.values()),
        "wrapper": environ["wsgi.file_wrapper"] is mod_wsgi.FileWrapper,
        "handler": mod_wsgi.LogHandler.__name__,
        "timeout": issubclass(mod_wsgi.RequestTimeout, BaseException),
    }
    start("200 OK", [])
    return [repr(found).encode()]


def subscribe(environ, start):
    import mod_wsgi

    @mod_wsgi.subscribe_events
    def event(name, **payload):
        print("event", name, payload.get("status"), payload.get("output_length"))
        if name == "request_started":
            inner = payload["application_object"]

            def wrapped(environ, start):
                environ["wrapped"] = "yes"
                return inner(environ, start)

            return {"application_object": wrapped}

    start("200 OK", [])
    return [b""]


def stuck(environ, start):
    # Keeps the GIL for a while: nothing here releases it.
    n = int(environ["QUERY_STRING"])
    start("200 OK", [])
    return [str(sum(range(n))).encode()]


def early(environ, start):
    start("200 OK", [])
    return [b"not read"]


def two_reads(environ, start):
    source = environ["wsgi.input"]
    first = source.read(3)
    start("200 OK", [("X-First", first.decode())])
    yield b"[" + first + b"]"
    for piece in iter(lambda: source.read(4), b""):
        yield b"[" + piece + b"]"


def application(environ, start_response):
    name = environ["PATH_INFO"].split("/")[1] or "hello"
    return globals()[name](environ, start_response)


other = hello
number = 5
