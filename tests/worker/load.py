"""Load for one worker from one event loop: every connection has one hello under way, as a server's children would."""

import mmap
import select
import socket
import struct
import time

from worker import driver


def saturate(table_fd, slots, rows, address, token, script, connections, seconds=None, path="/"):
    """Sends hello over `connections` connections until killed, or for `seconds`; gives the number of answers."""
    size = (driver.HEADER_WORDS + slots * (driver.SLOT_WORDS + -(-rows // 8) * 8)) * 8
    words = memoryview(mmap.mmap(table_fd, size)).cast("Q")
    first = driver.HEADER_WORDS + slots * driver.SLOT_WORDS
    # In the order of the server: what hardly ever changes comes first.
    entries = {
        "SERVER_SOFTWARE": "load",
        "apache.version": "2.4.0",
        "SERVER_ADMIN": "root@localhost",
        "SERVER_ADDR": "127.0.0.1",
        "mod_wsgi.listener_host": "127.0.0.1",
        "mod_wsgi.listener_port": "8000",
        "REQUEST_SCHEME": "http",
        "DOCUMENT_ROOT": "/var/www/html",
        "CONTEXT_PREFIX": "",
        "CONTEXT_DOCUMENT_ROOT": "/var/www/html",
        "SCRIPT_FILENAME": script,
        "mod_wsgi.callable_object": "application",
        "mod_wsgi.application_group": "",
        "HTTP_HOST": "localhost:8000",
        "HTTP_USER_AGENT": "load/1.0",
        "HTTP_ACCEPT": "*/*",
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": path,
        "RAW_URI": path,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "8000",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "54321",
        "mod_wsgi.script_name": "",
        "mod_wsgi.path_info": path,
        "mod_wsgi.server_pid": "4711",
        "mod_wsgi.queue_start": "1795435200000000",
        "mod_wsgi.request_start": "1795435200000000",
        "mod_wsgi.request_id": "abcdefgh",
        "wsgi.url_scheme": "http",
    }
    coded = b"".join(driver.entry(k, v) for k, v in entries.items())
    poll = select.epoll()
    socks = {}
    for row in range(connections):
        s = socket.socket(socket.AF_UNIX)
        s.connect(address)
        s.sendall(struct.pack("<IBBHHHI", 24, driver.HELLO, 0, 0, driver.VERSION, 0, 9) + bytes.fromhex(token))
        s.recv(64)
        socks[s.fileno()] = (s, row)
        poll.register(s, select.EPOLLIN)

    def send(s, row):
        generation = words[first + row] >> 32
        words[first + row] = generation << 32 | driver.SENT << 24 | 9
        fixed = struct.pack("<IHHIIQQII", 1, row, len(entries), generation, 9, 0, 0, len(coded), 0)
        s.sendall(struct.pack("<IBBH", len(fixed) + len(coded), driver.REQUEST, 0, 0) + fixed + coded)

    for s, row in socks.values():
        send(s, row)
    answers = 0
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        for fd, _ in poll.poll(1):
            s, row = socks[fd]
            data = s.recv(65536)
            if not data:
                return answers
            # The worker frees the row just after the answer.
            while words[first + row] >> 24 & 0xFF != driver.FREE:
                time.sleep(0)
            answers += 1
            send(s, row)
    return answers
