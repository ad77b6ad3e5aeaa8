"""What answers a dial in place of the hub: a portal, a proxy, a balancer without a backend, or nobody."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
import ssl
import threading
from pathlib import Path
from typing import Final

import attrs

from tests.faults.world import FaultWorld

# Nobody who is being tested waits longer for an answer.
PATIENCE_S: Final = 90.0
RECEIVE_BYTES: Final = 65536
_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@attrs.define(eq=False)
class Impostor:
    """Answers every connection with the same bytes.

    With a certificate (a PEM file of chain and key) it does TLS, reads the head of a request, and answers
    that; without one it answers the first bytes that come, whatever they are.
    """

    data: bytes
    certificate: Path | None = None
    hold: bool = False
    """Stay connected behind the answer, and say nothing more."""
    heads: list[str] = attrs.Factory(list)
    """The requests' heads, as far as there were any."""
    live: int = 0
    live_max: int = 0
    _lock: threading.Lock = attrs.Factory(threading.Lock)

    def answer(self, near: socket.socket) -> None:
        """Take an accepted connection over."""
        threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with self._lock:
            self.live += 1
            self.live_max = max(self.live_max, self.live)
        near.settimeout(PATIENCE_S)
        try:
            with near, contextlib.suppress(OSError):
                self._talk(self._with_tls(near))
        finally:
            with self._lock:
                self.live -= 1

    def _with_tls(self, near: socket.socket) -> socket.socket:
        if self.certificate is None:
            return near
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        return context.wrap_socket(near, server_side=True)

    def _talk(self, near: socket.socket) -> None:
        with near:
            head = b""
            while received := near.recv(RECEIVE_BYTES):
                head += received
                if self.certificate is None or b"\r\n\r\n" in head:
                    break
            if self.certificate is not None:
                self.heads.append(head.decode("latin-1"))
            near.sendall(self.data.replace(b"{accept}", _accept(head)))
            if self.hold:
                while near.recv(RECEIVE_BYTES):
                    pass
            else:
                # Closing on unread bytes would reset the connection, and the answer with it.
                near.shutdown(socket.SHUT_WR)
                near.settimeout(1.0)
                while near.recv(RECEIVE_BYTES):
                    pass


def _accept(head: bytes) -> bytes:
    """What RFC 6455 wants to see in a 101."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"sec-websocket-key":
            digest = hashlib.sha1(value.strip() + _WEBSOCKET_GUID, usedforsecurity=False).digest()
            return base64.b64encode(digest)
    return b""


def hub_certificate(world: FaultWorld) -> Path:
    """The hub's own: so an impostor gets as far as HTTP, as a proxy does that intercepts TLS."""
    file = world.folder / "impostor.pem"
    tls = world.folder / "hub" / "tls"
    file.write_bytes((tls / "server.pem").read_bytes() + (tls / "server.key").read_bytes())
    return file
