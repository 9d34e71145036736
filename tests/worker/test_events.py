"""R17, R21: no event of a connection is lost, whatever arrives when, and in which pieces, while threads serve others.

An event comes once for each arrival: a request, the rest of one, or the end of a connection that nobody would look at
again would stay where it is for ever."""

import os
import random
import struct
import threading
import time

import pytest

from worker import driver

CLIENTS = 8
ROUNDS = 60


class Pieces:
    """Stands in for a socket: what is sent goes out in pieces."""

    def __init__(self, sock, rng):
        self.sock, self.rng = sock, rng

    def sendall(self, data):
        while data:
            n = self.rng.randint(1, len(data))
            self.sock.sendall(data[:n])
            data = data[n:]
            if self.rng.random() < 0.5:
                time.sleep(0)

    def __getattr__(self, name):
        return getattr(self.sock, name)


def whole(c, row, rng, path):
    assert c.request("/echo", row=row, body=b"x" * rng.choice((0, 1, 7_000, 9_000, 60_000))).done


def in_pieces(c, row, rng, path):
    real, c.sock = c.sock, Pieces(c.sock, rng)
    body = rng.randbytes(rng.choice((10, 9_000, 40_000)))
    c.post("/echo", row=row, body=body)
    c.sock = real
    assert c.response().body == body
    c.worker.table.wait_free(row)


def by_descriptor(c, row, rng, path):
    with path.open("rb") as f:
        assert c.request("/echo", row=row, body_fd=f.fileno()).body == path.read_bytes()


def streamed(c, row, rng, path):
    """The request after it comes on a connection whose events were off meanwhile."""
    c.post("/echo", row=row, stream=True)
    sent = b""
    for _ in range(rng.randint(0, 4)):
        part = rng.randbytes(rng.randint(1, 20_000))
        c.send(driver.BODY, part)
        sent += part
    c.send(driver.BODY_END)
    assert c.response().body == sent
    c.worker.table.wait_free(row)


def unread(c, row, rng, path):
    """What is left of its body arrives together with the next request, which may have a descriptor."""
    c.post("/early", row=row, stream=True)
    c.send(driver.BODY, b"abc")
    assert c.response().body == b"not read"
    c.worker.table.wait_free(row)
    c.send(driver.BODY, b"def")
    c.send(driver.BODY_END)


STAY = [whole, whole, in_pieces, by_descriptor, streamed, unread]


def recalled(c, row, rng, path):
    """Taken back, and the connection ended, perhaps before the worker has looked at either."""
    generation = c.worker.table.take(row, c.client)
    c.worker.table.recall(row)
    c.post("/", row=row, row_generation=generation)


def cut(c, row, rng, path):
    """The connection ends in the middle of a frame."""
    c.sock.sendall(struct.pack("<IBBH", 5_000, driver.REQUEST, 0, 0) + b"x" * rng.randint(0, 4_999))


def leaves(c, row, rng, path):
    """The client leaves while its request is served."""
    c.post(rng.choice(("/", "/waits", "/stream")), row=row)


LEAVE = [recalled, cut, leaves]


@pytest.mark.parametrize("threads", [1, 4])
def test_no_event_is_lost(python, tmp_path, threads):
    path = tmp_path / "body"
    path.write_bytes(os.urandom(20_000))
    faults = []
    with driver.Worker(
        tmp_path, python=python, preload=[(driver.ROUTES, "application")], threads=threads, rows=CLIENTS
    ) as worker:
        worker.script = driver.ROUTES
        worker.wait_ready()

        def count():
            return len(os.listdir(f"/proc/{worker.process.pid}/fd"))

        with worker.connect() as c:
            c.request("/", row=0)
        before = count()

        def client(number):
            rng, did = random.Random(number), []
            try:
                for _ in range(ROUNDS):
                    with worker.connect(client=number + 1) as c:
                        acts = [*rng.choices(STAY, k=rng.randint(0, 4)), rng.choice(LEAVE)]
                        did = [act.__name__ for act in acts]
                        for act in acts:
                            act(c, number, rng, path)
                    worker.table.wait_free(number)
            except BaseException as e:
                faults.append((did, repr(e)))

        clients = [threading.Thread(target=client, args=(n,)) for n in range(CLIENTS)]
        for t in clients:
            t.start()
        for t in clients:
            t.join(120)
        assert not any(t.is_alive() for t in clients)
        assert not faults, faults
        # Every end of a connection has been seen.
        driver.wait_for(lambda: count() <= before, "connections to be closed")
        with worker.connect() as c:
            assert c.request("/", row=0).body == b"hello"
