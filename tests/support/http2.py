"""Frames of HTTP/2 by hand, for those who don't keep to it (RFC 9113)."""

from __future__ import annotations

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, SETTINGS, PING, GOAWAY, CONTINUATION = 1, 4, 6, 7, 9
ACK = 1
ENHANCE_YOUR_CALM = 11


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


class Connection:
    """A client that says what it likes."""

    def __init__(self, endpoint: str, greet: bool = True, timeout: float = 60, source: str = ""):
        host, port = endpoint.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=timeout, source_address=(source, 0))
        if greet:
            self.send(PREFACE + frame(SETTINGS))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def frames(self):
        """What the server sends, until it closes: kind, flags, stream, payload."""
        try:
            while True:
                head = self._read(9)
                length = int.from_bytes(head[:3], "big")
                yield head[3], head[4], int.from_bytes(head[5:9], "big"), self._read(length)
        except (EOFError, ConnectionError):
            return

    def goodbye(self):
        """Waits until the server closes; the code of its GOAWAY, or None."""
        code = None
        for kind, _, _, payload in self.frames():
            if kind == GOAWAY:
                code = int.from_bytes(payload[4:8], "big")
        return code

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_) -> None:
        self.close()
