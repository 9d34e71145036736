"""What an application can do to the memory it shares with the server. `/word` picks a function; the answer is JSON."""

import ctypes
import json
import os
import random
import signal
import threading
import time

SCRATCH = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "scratch")
LIBC = ctypes.CDLL(None, use_errno=True)
MADV_REMOVE = 9


def shared():
    """Where the memory shared with the server lies: (start, size), and its name below /proc/self/map_files."""
    with open("/proc/self/maps") as f:
        places = [line.split()[0] for line in f if "mod-wsgi-rs-table" in line]
    assert places
    return [(int(p.split("-")[0], 16), int(p.split("-")[1], 16) - int(p.split("-")[0], 16), p) for p in places]


def attempt(do):
    try:
        do()
    except OSError as e:
        return e.errno
    return 0


def resize():
    """The worker has closed its descriptors of it; getting another by the mapping, and by the descriptors that are there."""
    said = {}
    for _, _, name in shared():
        said["reopen " + name] = attempt(lambda name=name: os.truncate("/proc/self/map_files/" + name, 0))
    for fd in os.listdir("/proc/self/fd"):
        try:
            if "mod-wsgi-rs-table" in os.readlink("/proc/self/fd/" + fd):
                said["truncate " + fd] = attempt(lambda fd=fd: os.ftruncate(int(fd), 0))
        except OSError:
            continue
    return said


def punch():
    """Makes all of it zeroes, and its pages nobody's."""
    done = [LIBC.madvise(ctypes.c_void_p(at), ctypes.c_size_t(n), MADV_REMOVE) for at, n, _ in shared()]
    return {"punched": done == [0] * len(done)}


def fill(byte):
    """Every word the same: states, generations and counts that mean something else, or nothing."""
    for at, n, _ in shared():
        ctypes.memset(at, byte, n)
    return {"filled": byte}


def retire():
    """The words beside magic and shape, among them the one that says: ask for another table."""
    for at, n, _ in shared():
        for word in range(16, min(n, 64 * 8), 8):
            ctypes.memmove(at + word, (3).to_bytes(8, "little"), 8)
    return {"retired": True}


def scribble():
    """Random words at random places, for ever."""

    def go():
        chance = random.Random(os.getpid())
        places = shared()
        while True:
            for _ in range(200):
                start, n, _ = chance.choice(places)
                word = chance.choice([
                    b"\0" * 8, b"\xff" * 8, chance.randbytes(8), bytes([chance.randrange(4), 0, 0, 0]) * 2,
                ])  # fmt: skip
                ctypes.memmove(start + chance.randrange(n // 8) * 8, word, 8)
            time.sleep(0.001)

    threading.Thread(target=go, daemon=True).start()
    return {"scribbling": True}


def signals():
    """What may be signalled: the processes above this one, and the keeper's."""
    parent = os.getppid()
    return {"parent": attempt(lambda: os.kill(parent, signal.SIGCONT)), "init": attempt(lambda: os.kill(1, 0))}


def pass_everywhere():
    """A file of a FUSE file system, over every socket of this process, with bytes that mean nothing."""
    import socket

    with open(os.path.join(SCRATCH, "fuse")) as f:
        fd = os.open(f.read(), os.O_RDONLY)
    wait("opened", "halted")
    for n in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink("/proc/self/fd/" + n).startswith("socket:"):
                continue
            # the kernel's reference goes with the message: this process need not live for it
            with socket.socket(fileno=os.dup(int(n))) as s:
                s.setblocking(False)
                socket.send_fds(s, [b"\xff" * 16], [fd])
        except OSError:
            continue
    return {"passed": True}


def wait(mark, until):
    """Marks that it has come so far, and waits for the test."""
    open(os.path.join(SCRATCH, mark), "w").close()
    end = time.monotonic() + 30
    while not os.path.exists(os.path.join(SCRATCH, until)) and time.monotonic() < end:
        time.sleep(0.005)


def application(environ, start_response):
    word = environ["PATH_INFO"].strip("/").split("/")[-1]
    do = {"ff": lambda: fill(255), "zero": lambda: fill(0), "two": lambda: fill(2)}.get(word) or globals()[word]
    body = json.dumps(do()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
