"""A blocking TLS server that answers as it is told, for clients that are processes."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from benchmarks.nginx import issue_certificate
from benchmarks.system import Endpoint
from tests.benchmarks.upstream.tls import read_head

DEADLINE_S = 20.0


@attrs.define(eq=False)
class Canned:
    """The running server: each head it has read is in `heads`, each body's size in `bodies`.

    `connections` counts those whose handshake was completed.
    """

    endpoint: Endpoint
    answer: Callable[[ssl.SSLSocket, bytes], None]
    heads: list[bytes] = attrs.Factory(list)
    bodies: list[int] = attrs.Factory(list)
    connections: int = 0

    def serve(self, sock: ssl.SSLSocket) -> None:
        with sock, suppress(AssertionError, OSError):
            while True:
                head, _, body = read_head(sock).partition(b"\r\n\r\n")
                self.heads.append(head)
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 0)
                came = len(body)
                while came < size:
                    came += len(sock.recv(65536))
                self.bodies.append(came)
                self.answer(sock, head)


@contextmanager
def canned(folder: Path, answer: Callable[[ssl.SSLSocket, bytes], None]) -> Iterator[Canned]:
    """Serve connections in threads until the block is left; those that are open then are cut."""
    ca = issue_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    threads: list[threading.Thread] = []
    open_now: list[ssl.SSLSocket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint(
            "127.0.0.1", listener.getsockname()[1], ca, prefix="/p", headers=(("X-Who", "me"),)
        )
        server = Canned(endpoint, answer)

        def accept() -> None:
            while True:
                try:
                    plain, _ = listener.accept()
                except OSError:
                    return
                with suppress(OSError):
                    plain.settimeout(DEADLINE_S)
                    sock = context.wrap_socket(plain, server_side=True)
                    server.connections += 1
                    open_now.append(sock)
                    threads.append(threading.Thread(target=server.serve, args=(sock,)))
                    threads[-1].start()

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield server
        finally:
            # A close alone does not wake who waits in accept.
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(DEADLINE_S)
            for sock in open_now:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(DEADLINE_S)
