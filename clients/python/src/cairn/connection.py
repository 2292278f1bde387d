"""How this package connects to nodes."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass
from typing import Union

import grpc
import grpc.aio

OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.enable_http_proxy", 0),
]

Path = Union[str, os.PathLike]


@dataclass(frozen=True)
class Tls:
    """Files in PEM form: the CAs of the nodes, and who you are: a certificate with its key, or a bearer token."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    token: str | None = None

    @staticmethod
    def from_environment() -> Tls | None:
        """What CAIRN_CA, CAIRN_CERT, CAIRN_KEY and CAIRN_TOKEN (a file) name, as for cairnctl; None without CAIRN_CA."""
        ca, certificate, key, token = (os.environ.get(f"CAIRN_{name}") or None for name in ("CA", "CERT", "KEY", "TOKEN"))
        if ca is None:
            return None
        return Tls(ca, certificate, key, None if token is None else pathlib.Path(token).read_text().strip())

    def credentials(self) -> grpc.ChannelCredentials:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        channel = grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))
        if self.token is None:
            return channel
        return grpc.composite_channel_credentials(channel, grpc.access_token_call_credentials(self.token))


def _read(path: Path | None) -> bytes | None:
    return None if path is None else pathlib.Path(path).read_bytes()


def open_channel(endpoint: str, tls: Tls | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(endpoint, OPTIONS)
    return grpc.secure_channel(endpoint, tls.credentials(), OPTIONS)


def open_async_channel(endpoint: str, tls: Tls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(endpoint, OPTIONS)
    return grpc.aio.secure_channel(endpoint, tls.credentials(), OPTIONS)
