"""N15: idle keep-alive connections of clients are nginx's alone."""

from __future__ import annotations

import resource
import socket
from collections.abc import Callable

import pytest

from harness import http, procs
from harness.nginx import Nginx
from harness.wait import wait_until


@pytest.mark.long
@pytest.mark.parametrize("wanted", [10_000])
def test_idle_connections_add_nothing_to_workers(nginx: Callable[..., Nginx], wanted: int) -> None:
    """N15: 10,000 idle keep-alive connections, each of which has had an answer, or as many as this machine's limits allow:
    the workers have the descriptors, threads and memory that they had with a few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(wanted, hard - 500)
    if count < 2_000:
        pytest.skip(f"a limit of {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = nginx(
        "location / { wsgi_script {apps}/conform.wsgi; wsgi_process_group g; }",
        http_config="wsgi_daemon_process g processes=2 threads=5;",
        main=f"worker_rlimit_nofile {hard};",
        start=False,
    )
    text = server.text().replace("worker_connections 1024", f"worker_connections {count + 500}")
    text = text.replace("keepalive_timeout 30s", "keepalive_timeout 300s")
    server.text = lambda: text  # type: ignore[method-assign]
    server.start()
    request = http.build(target="/exact?idle")

    def ask(c: socket.socket) -> None:
        c.sendall(request)
        got = b""
        while not got.endswith(b"exact:idle"):
            piece = c.recv(4096)
            assert piece, got
            got += piece
        assert got.startswith(b"HTTP/1.1 200 ") and b"keep-alive" in got

    clients: list[socket.socket] = []

    def more(n: int) -> None:
        for _ in range(n):
            c = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            clients.append(c)
            ask(c)

    def state() -> dict[int, tuple[int, int]]:
        return {pid: (procs.descriptors(pid), procs.threads(pid)) for pid in sorted(server.ready())}

    try:
        more(200)
        wait_until(lambda: len(server.ready()) == 2, 10, "two workers")
        before, memory = state(), {pid: procs.memory_kib(pid) for pid in server.ready()}
        sockets = {p.pid: procs.descriptors(p.pid) for p in server.server_processes()}
        more(count - 200)
        assert sum(procs.descriptors(p.pid) - sockets[p.pid] for p in server.server_processes()) >= count - 250
        after = state()
        assert after.keys() == before.keys()
        for pid, (descriptors, threads) in after.items():
            # each nginx process keeps connections to a worker, as many as it had requests at a time
            assert descriptors <= before[pid][0] + 4 and threads == before[pid][1]
            assert procs.memory_kib(pid) <= memory[pid] + 4096
        for c in (clients[0], clients[count // 2], clients[-1]):
            ask(c)
    finally:
        for c in clients:
            c.close()
