"""Drives one worker without a server and without a supervisor: makes its table, sockets and plan, starts the
interpreter as `exec-worker` would, and speaks the wire. Written from docs/protocol.md, sharing no code with the worker.
"""

import array
import fcntl
import json
import mmap
import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "worker" / "python"
ROUTES = Path(__file__).with_name("routes.wsgi")

VERSION = 2
HELLO, REQUEST, BODY, BODY_END, CONTINUE, RESPONSE, DATA, FILE, LOG, END, DONE, ABORT, REPLY, ADOPT = range(1, 15)
F_END, F_DONE, F_BODY_FD, F_BODY_STREAM, F_NO_FILE, F_LANE = 1, 2, 4, 8, 16, 32
APPLICATION, LOAD, PROTOCOL, INTERNAL, TIMEOUT, NOT_RUN = range(1, 7)

MAGIC = 0x3130535257534757
HEADER_WORDS, SLOT_WORDS, LINE_WORDS = 512, 16, 8
FREE, SENT, RUNNING, CLOSED = range(4)
STARTING, READY, DRAINING = 1, 2, 3

PROGRAM = (
    "import os; p, b = map(int, os.environ.pop('MOD_WSGI_RS_PLAN').split(',')); "
    "exec(compile(os.pread(b, 1 << 20, 0), '<mod-wsgi-rs bootstrap>', 'exec'), "
    "{'__name__': '_mod_wsgi_rs_bootstrap', 'plan_fd': p, 'bootstrap_fd': b})"
)
DEADLINE = 20.0


def extension():
    """The built extension: MOD_WSGI_RS_WORKER_DIR, else a build directory of cargo."""
    given = os.environ.get("MOD_WSGI_RS_WORKER_DIR")
    if given:
        return Path(given) / "_worker.abi3.so"
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    found = [target / kind / "libmod_wsgi_worker.so" for kind in ("release", "debug")]
    found = [f for f in found if f.exists()]
    if not found:
        raise RuntimeError(f"no libmod_wsgi_worker.so below {target}: build the worker first")
    return max(found, key=lambda f: f.stat().st_mtime)


def worker_files(directory):
    """Lays out the worker's files as an installation does."""
    shutil.copytree(SOURCE, directory, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    shutil.copy(extension(), directory / "_worker.abi3.so")
    return directory


def sealed(name, size):
    """A memfd of zeros that nobody can make shorter or longer."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    # F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW
    fcntl.fcntl(fd, 1033, 1 | 2 | 4)
    return fd


class Table:
    """The shared table, as server processes and the supervisor see it."""

    def __init__(self, slots=2, threads=2, rows=8):
        self.slots, self.threads, self.rows = slots, threads, rows
        self.row_words = -(-rows // LINE_WORDS) * LINE_WORDS
        words = HEADER_WORDS + slots * (SLOT_WORDS + self.row_words)
        self.fd = sealed("table", words * 8)
        self.map = mmap.mmap(self.fd, words * 8)
        self.words = memoryview(self.map).cast("Q")
        self.words[0] = MAGIC
        self.words[1] = slots | threads << 16 | rows << 32
        self.words[HEADER_WORDS] = 1 << 32 | READY << 24

    def _slot(self, field):
        return self.words[HEADER_WORDS + field]

    def set_state(self, state):
        self.words[HEADER_WORDS] = 1 << 32 | state << 24

    @property
    def heartbeat(self):
        return self._slot(9)

    @property
    def requests(self):
        return self._slot(8)

    @property
    def running(self):
        return self._slot(2)

    def _row(self, row):
        return HEADER_WORDS + self.slots * SLOT_WORDS + row

    def state(self, row):
        return self.words[self._row(row)] >> 24 & 0xFF

    def take(self, row, client=7):
        """FREE to SENT; gives the generation."""
        word = self.words[self._row(row)]
        assert word >> 24 & 0xFF == FREE, f"row {row} is not free: {word:#x}"
        self.words[self._row(row)] = (word >> 32) << 32 | SENT << 24 | client
        return word >> 32

    def recall(self, row):
        word = self.words[self._row(row)]
        assert word >> 24 & 0xFF == SENT
        self.words[self._row(row)] = (word >> 32) + 1 << 32

    def wait_free(self, row):
        wait_for(lambda: self.state(row) in (FREE, CLOSED), f"row {row} to be free")


def wait_for(condition, what, deadline=DEADLINE):
    """Polls until `condition` holds."""
    end = time.monotonic() + deadline
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"timed out waiting for {what}")
        time.sleep(0.002)


class Worker:
    """One worker process and its supervisor's side."""

    def __init__(
        self, root, *, user=None, python=sys.executable, preload=(), threads=2, rows=8, env=None, files=None, **plan
    ):
        self.root = Path(root)
        self.files = files or worker_files(self.root / "worker")
        self.table = Table(threads=threads, rows=rows)
        self.token = bytes(range(16))
        self.next_row = 0
        self.lock = threading.Lock()
        self.address = self.root / "w.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.address))
        listener.listen(128)
        self.control, theirs = socket.socketpair()
        worker_dir = os.open(self.files, os.O_PATH | os.O_DIRECTORY)
        bootstrap = os.open(self.files / "bootstrap.py", os.O_RDONLY)
        # as scoreboard/src/journal.rs: 36 words for each thread
        self.journal = sealed("journal", threads * 36 * 8)
        fds = {
            "journal": self.journal,
            "control": theirs.fileno(),
            "table": self.table.fd,
            "listener": listener.fileno(),
            "worker_dir": worker_dir,
        }
        self.plan = {
            "group": "test",
            "application": "",
            "slot": 0,
            "slot_generation": 1,
            "slots": self.table.slots,
            "rows": rows,
            "threads": threads,
            "processes": 1,
            "multiprocess": False,
            "token": self.token.hex(),
            "preload": [{"group": "test", "application": "", "script": str(s), "callable": c} for s, c in preload],
            "python_path": [],
            "home": "",
            "display_name": "",
            "startup_timeout": 15.0,
            "shutdown_timeout": 5.0,
            "graceful_timeout": 15.0,
            "orphan_timeout": 10.0,
            "fds": fds,
        }
        self.plan.update(plan)
        plan_fd = os.memfd_create("plan", 0)
        os.pwrite(plan_fd, json.dumps(self.plan).encode(), 0)
        environment = dict(os.environ if env is None else env)
        environment["MOD_WSGI_RS_PLAN"] = f"{plan_fd},{bootstrap}"
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self.process = subprocess.Popen(
            [str(python), "-c", PROGRAM],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.errors,
            stderr=self.errors,
            user=user,
            pass_fds=[*fds.values(), plan_fd, bootstrap],
        )
        for fd in (worker_dir, bootstrap, plan_fd):
            os.close(fd)
        theirs.close()
        listener.close()
        self.messages = []
        self._buffer = b""
        self._reader = threading.Thread(target=self._read_control, daemon=True)
        self._reader.start()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.control.close()
        if kind is not None:
            print("worker said:", self.stderr(), self.messages, sep="\n", file=sys.stderr)
        self.errors.close()

    def stderr(self):
        return os.pread(self.errors.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    def _read_control(self):
        while True:
            try:
                data = self.control.recv(65536)
            except OSError:
                return
            if not data:
                return
            self._buffer += data
            while len(self._buffer) >= 4:
                (n,) = struct.unpack_from("<I", self._buffer)
                if len(self._buffer) < 4 + n:
                    break
                self.messages.append(json.loads(self._buffer[4 : 4 + n]))
                self._buffer = self._buffer[4 + n :]

    def of(self, op):
        return [m for m in list(self.messages) if m["op"] == op]

    def wait_ready(self):
        def ready():
            if self.process.poll() is not None:
                raise AssertionError(f"worker ended with {self.process.returncode}: {self.stderr()}")
            return self.of("ready")

        return wait_for(ready, "ready")[0]

    def wait_log(self, text):
        return wait_for(lambda: [m for m in self.of("log") if text in m["text"]], f"a log record with {text!r}")[0]

    def tell(self, **message):
        data = json.dumps(message).encode()
        self.control.sendall(struct.pack("<I", len(data)) + data)

    def exit(self, timeout=5.0, reason="shutdown_signal"):
        self.tell(op="exit", timeout=timeout, reason=reason)
        return self.process.wait(timeout + 5)

    def connect(self, **options):
        return Client(self, **options)

    def get(self, path="/", **options):
        """One request on a connection of its own."""
        with self.connect() as client:
            return client.request(path, **options)


class Response:
    """What came back for one request."""

    def __init__(self):
        self.status = None
        self.reason = b""
        self.headers = []
        self.body = b""
        self.file = None
        self.ran = None
        self.logs = []
        self.abort = None
        self.frames = []
        self.ended = self.done = False

    def header(self, name):
        return [v for n, v in self.headers if n.lower() == name.lower()]

    @property
    def log_text(self):
        return "\n".join(text for _, text in self.logs)


class Client:
    """A server process's connection."""

    lane = False

    def __init__(self, worker, token=None, greet=True, client=7):
        self.worker = worker
        self.client = client
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(str(worker.address))
        self.buffer = b""
        self.fds = []
        if greet:
            self.send(HELLO, struct.pack("<HHI", VERSION, 0, client) + (token or worker.token))
            kind, _, payload = self.frame()
            assert kind == HELLO
            self.hello = struct.unpack("<HHI", payload)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()
        for fd in self.fds:
            os.close(fd)

    def send(self, kind, payload=b"", flags=0, fds=()):
        data = struct.pack("<IBBH", len(payload), kind, flags, 0) + payload
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = self.sock.sendmsg([data], rights)
            data = data[sent:]
        if data:
            self.sock.sendall(data)

    def frame(self):
        """The next frame: kind, flags, payload. EOFError when the worker closes."""
        while True:
            if len(self.buffer) >= 8:
                n, kind, flags, _ = struct.unpack_from("<IBBH", self.buffer)
                if len(self.buffer) >= 8 + n:
                    payload, self.buffer = self.buffer[8 : 8 + n], self.buffer[8 + n :]
                    return kind, flags, payload
            data, rights, _, _ = self.sock.recvmsg(262144, socket.CMSG_SPACE(16))
            for level, kind, raw in rights:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self.fds.extend(array.array("i", raw[: len(raw) - len(raw) % 4]))
            if not data:
                raise EOFError("the worker closed the connection")
            self.buffer += data

    def closed(self):
        """Whether the worker has closed the connection (waits)."""
        try:
            while True:
                self.frame()
        except (EOFError, ConnectionError):
            return True

    def post(
        self,
        path="/",
        *,
        script=None,
        body=b"",
        body_fd=None,
        stream=False,
        no_file=False,
        environ=None,
        mtime=0,
        row=None,
        callable=None,
        generation=1,
        row_generation=None,
        method=None,
        timeout=0,
    ):
        """Sends a REQUEST; gives its row. `timeout`: milliseconds, 0 = the group's, 2**32 - 1 = none."""
        worker = self.worker
        if row is None:
            with worker.lock:
                row = worker.next_row
                worker.next_row = (row + 1) % worker.table.rows
        if row_generation is None:
            row_generation = worker.table.take(row, self.client)
        entries = {
            "REQUEST_METHOD": method or ("POST" if body or body_fd or stream else "GET"),
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.url_scheme": "http",
            "SCRIPT_FILENAME": str(script or worker.script),
        }
        length = len(body) if body_fd is None else os.fstat(body_fd).st_size
        if length:
            entries["CONTENT_LENGTH"] = str(length)
        if callable:
            entries["mod_wsgi.callable_object"] = callable
        entries.update(environ or {})
        coded = b"".join(entry(k, v) for k, v in entries.items())
        flags = F_BODY_FD if body_fd is not None else F_BODY_STREAM if stream else 0
        fixed = struct.pack(
            "<IHHIIQQII",
            generation,
            row,
            len(entries),
            row_generation,
            self.client,
            mtime,
            0 if stream else length,
            len(coded),
            timeout,
        )
        inline = b"" if flags else body
        flags |= F_NO_FILE if no_file else 0
        flags |= F_LANE if self.lane else 0
        self.send(REQUEST, fixed + coded + inline, flags, [] if body_fd is None else [body_fd])
        return row

    def response(self, until=DONE):
        """Reads frames to DONE (or only to END)."""
        return self.read_response(self.frame, until)

    def read_response(self, next_frame, until=DONE, fds=None):
        """A response of the frames that a function gives; `fds` gives the descriptors that came with them."""
        r = Response()
        while True:
            kind, flags, payload = next_frame()
            r.frames.append(kind)
            if kind == RESPONSE:
                r.status, count, reason_len, r.ran, head_len = struct.unpack_from("<HHHHI", payload)
                head, data = payload[12 : 12 + head_len], payload[12 + head_len :]
                r.reason, at = head[:reason_len], reason_len
                for _ in range(count):
                    n, v = struct.unpack_from("<HI", head, at)
                    at += 6
                    r.headers.append((head[at : at + n].decode("latin-1"), head[at + n : at + n + v].decode("latin-1")))
                    at += n + v
                assert at == head_len
                r.body += data
            elif kind == DATA:
                r.body += payload
            elif kind == FILE:
                offset, length = struct.unpack("<QQ", payload)
                fd = (fds() if fds else self.fds).pop(0)
                r.file = (offset, length)
                r.body += os.pread(fd, length, offset)
                os.close(fd)
            elif kind == LOG:
                r.logs.append((payload[0], payload[1:].decode()))
            elif kind == ABORT:
                r.abort = payload[0]
            elif kind not in (END, DONE, CONTINUE):
                raise AssertionError(f"unexpected frame {kind}")
            r.ended |= kind == END or bool(flags & F_END)
            r.done |= kind == DONE or bool(flags & F_DONE)
            if r.done or (until == END and r.ended):
                return r

    def request(self, path="/", **options):
        row = self.post(path, **options)
        response = self.response()
        self.worker.table.wait_free(row)
        return response


class Lane(Client):
    """A connection that carries many requests; `answer` gives one row's."""

    lane = True

    def __init__(self, worker, **options):
        super().__init__(worker, **options)
        #: by row and generation: bytes of frames, and the connection that came by ADOPT
        self.inboxes = {}
        self.adopted = {}

    def post(self, *args, **options):
        """The same; gives row and generation."""
        row = options.pop("row", None)
        with self.worker.lock:
            if row is None:
                row = self.worker.next_row
                self.worker.next_row = (row + 1) % self.worker.table.rows
        generation = options.pop("row_generation", None)
        if generation is None:
            generation = self.worker.table.take(row, self.client)
        super().post(*args, row=row, row_generation=generation, **options)
        return row, generation

    def pump(self):
        """Reads one frame of the lane."""
        kind, _, payload = self.frame()
        row, zero, generation = struct.unpack_from("<HHI", payload)
        assert zero == 0
        if kind == REPLY:
            self.inboxes.setdefault((row, generation), bytearray()).extend(payload[8:])
        else:
            assert kind == ADOPT and len(payload) == 8, kind
            self.adopted[row, generation] = self.take_over(self.fds.pop(0))

    def take_over(self, fd):
        client = Client.__new__(Client)
        client.worker, client.client, client.buffer, client.fds = self.worker, self.client, b"", []
        client.sock = socket.socket(fileno=fd)
        client.sock.settimeout(DEADLINE)
        return client

    def answer(self, at, until=DONE):
        """Reads the answer of a row and its generation."""

        def next_frame():
            while True:
                box = self.inboxes.setdefault(at, bytearray())
                if len(box) >= 8:
                    n, kind, flags, _ = struct.unpack_from("<IBBH", box)
                    # only whole frames travel
                    assert len(box) >= 8 + n
                    payload = bytes(box[8 : 8 + n])
                    del box[: 8 + n]
                    return kind, flags, payload
                if at in self.adopted:
                    return self.adopted[at].frame()
                self.pump()

        return self.read_response(next_frame, until, lambda: self.adopted[at].fds)

    def request(self, path="/", **options):
        at = self.post(path, **options)
        response = self.answer(at)
        self.worker.table.wait_free(at[0])
        return response

    def __exit__(self, *args):
        for client in self.adopted.values():
            client.__exit__(*args)
        super().__exit__(*args)


KEYS = None


def key_ids():
    """Numbers of the known keys, read from the one list."""
    global KEYS
    if KEYS is None:
        keys = {}
        for line in (ROOT / "wire" / "src" / "keys.rs").read_text().splitlines():
            parts = line.split()
            if len(parts) == 3 and parts[0].isdigit() and parts[2].endswith('",'):
                keys[parts[2][1:-2]] = int(parts[0])
        KEYS = keys
    return KEYS


def entry(key, value):
    value = value if isinstance(value, bytes) else value.encode("latin-1")
    number = key_ids().get(key, 0)
    name = b"" if number else struct.pack("<H", len(key)) + key.encode("latin-1")
    return bytes([number]) + name + struct.pack("<I", len(value)) + value


def readable(sock, timeout):
    return bool(select.select([sock], [], [], timeout)[0])
