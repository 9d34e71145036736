"""An HTTP/2 client without encryption (prior knowledge): streams side by side, windows at will."""

from __future__ import annotations

import socket
from collections.abc import Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes


class Client:
    """One connection. `window`: what each stream may send before the client reads; `None` = 64 KiB and renewed."""

    def __init__(self, port: int, window: int | None = None) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.renew = window is None
        if window is not None:
            self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.status: dict[int, str] = {}
        self.fields: dict[int, dict[str, str]] = {}
        self.body: dict[int, bytearray] = {}
        self.ended: dict[int, str] = {}
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self.h2.data_to_send())

    def get(self, path: str, method: str = "GET", fields: Iterable[tuple[str, str]] = (), end: bool = True) -> int:
        stream = self.h2.get_next_available_stream_id()
        headers = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "localhost"), *fields]
        self.h2.send_headers(stream, headers, end_stream=end)
        self.body[stream] = bytearray()
        self.flush()
        return stream

    def post(self, path: str, body: bytes, fields: Iterable[tuple[str, str]] = ()) -> int:
        """A POST whose body is sent as fast as the server's windows allow."""
        stream = self.get(path, "POST", fields, end=False)
        left = memoryview(body)
        while len(left) and stream not in self.ended:
            n = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(left))
            if n:
                self.h2.send_data(stream, bytes(left[:n]))
                left = left[n:]
                self.flush()
            else:
                self.step()
        self.h2.end_stream(stream)
        self.flush()
        return stream

    def step(self, timeout: float = 30.0) -> None:
        self.sock.settimeout(timeout)
        data = self.sock.recv(1 << 18)
        if not data:
            raise AssertionError("connection closed")
        for event in self.h2.receive_data(data):
            if isinstance(event, ResponseReceived):
                self.status[event.stream_id] = dict(event.headers)[":status"]
                self.fields[event.stream_id] = dict(event.headers)
            elif isinstance(event, DataReceived):
                self.body[event.stream_id] += event.data
                if self.renew and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, StreamEnded):
                self.ended[event.stream_id] = "whole"
            elif isinstance(event, StreamReset):
                self.ended[event.stream_id] = "reset"
        self.flush()

    def read(self, stream: int) -> bytes:
        while stream not in self.ended:
            self.step()
        return bytes(self.body[stream])

    def close(self) -> None:
        self.sock.close()
