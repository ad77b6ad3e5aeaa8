"""Blocking TLS connections to an endpoint."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from benchmarks.processes import free_port
from benchmarks.system import Endpoint

__all__ = ["Endpoint", "connected", "elsewhere", "read_head"]


@contextmanager
def connected(endpoint: Endpoint, newest: ssl.TLSVersion | None = None) -> Iterator[ssl.SSLSocket]:
    context = ssl.create_default_context(cafile=str(endpoint.ca))
    if newest is not None:
        context.maximum_version = newest
    with (
        socket.create_connection((endpoint.host, endpoint.port), 10) as plain,
        context.wrap_socket(plain, server_hostname=endpoint.server_name) as sock,
    ):
        yield sock


def read_head(sock: ssl.SSLSocket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = sock.recv(65536)
        assert data, head
        head += data
    return head


def elsewhere(endpoint: Endpoint) -> Endpoint:
    """The same, on a port where nobody listens."""
    return attrs.evolve(endpoint, port=free_port())
