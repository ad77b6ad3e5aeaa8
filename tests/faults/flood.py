"""An API server that costs little, as a process: `python -m tests.faults.flood FOLDER`.

    GET …/log                   bytes without end, as fast as they are taken
    GET …/log?sinceSeconds=N    a first line, and then the same, once it is the turn of all that have this N:
                                each SIGUSR1 is the turn of the least N that waits
    GET anything else           a small answer

The sandbox does much for each request, and shares two cores with what is measured; and a thousand of its
streams would be a thousand processes. The folder has its certificate, server.pem. It says `listening PORT`.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trustme
import yaml

from sandbox.demo.processes import Daemon, Daemons
from tests.faults.control import TOP

READ_BYTES: Final = 64 * 1024
BACKLOG: Final = 2048
TOKEN: Final = "flood"
BODY: Final = json.dumps({"kind": "Pod", "apiVersion": "v1", "metadata": {"annotations": {"a": "x" * 2000}}})
SMALL: Final = (
    f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()
)
FIRST: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nbegun\n\r\n"
)
_TURN: Final = re.compile(rb"sinceSeconds=(\d+)")
PIECE: Final = b"%x\r\n%s\r\n" % (READ_BYTES, b"z" * READ_BYTES)


@contextmanager
def flooding(folder: Path) -> Iterator[tuple[Daemon, int, Path]]:
    """Run it for the block: the process, its port, and a relay's kubeconfig for it."""
    folder.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    with Daemons(folder) as daemons:
        argv = [sys.executable, "-m", "tests.faults.flood", str(folder)]
        daemon = daemons.start("flood", argv, {"PYTHONPATH": str(TOP)})
        port = int(daemon.wait_for("listening ").split()[1])
        yield daemon, port, write_kubeconfig(folder, port)


def write_kubeconfig(folder: Path, port: int) -> Path:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "relay"}}],
        "clusters": [
            {
                "name": "c",
                "cluster": {"server": f"https://127.0.0.1:{port}", "certificate-authority": "ca.pem"},
            }
        ],
        "users": [{"name": "relay", "user": {"token": TOKEN}}],
    }
    path = folder / "relay.kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


class Client:
    """One connection of the relay's."""

    def __init__(self, server: Server, plain: socket.socket) -> None:
        self.server = server
        self.sock = server.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        self.head = b""
        self.unsent = memoryview(b"")
        self.turn: int | None = None
        """While it waits for that."""
        self.floods = False

    def ready(self) -> None:
        """Do one step of what can be done; raises OSError at the end of the connection."""
        try:
            if self.unsent or self.floods:
                if not self.unsent:
                    self.unsent = memoryview(PIECE)
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
            else:
                data = self.sock.recv(READ_BYTES)
                if not data:
                    raise ConnectionResetError
                self.take(data)
            self.server.want(
                self, selectors.EVENT_WRITE if self.unsent or self.floods else selectors.EVENT_READ
            )
        except ssl.SSLWantReadError:
            self.server.want(self, selectors.EVENT_READ)
        except ssl.SSLWantWriteError:
            self.server.want(self, selectors.EVENT_WRITE)

    def take(self, data: bytes) -> None:
        """More of a request's head; there are no bodies."""
        self.head += data
        if not self.head.endswith(b"\r\n\r\n"):
            return
        target = self.head.split(b" ", 2)[1]
        self.head = b""
        if target.partition(b"?")[0].endswith(b"/log"):
            self.unsent = memoryview(FIRST)
            turn = _TURN.search(target)
            self.turn = int(turn[1]) if turn else None
            self.floods = turn is None
        else:
            self.unsent = memoryview(SMALL)


class Server:
    """All connections, and the loop."""

    def __init__(self, certificate: Path) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        self.selector = selectors.DefaultSelector()
        self.clients: set[Client] = set()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.signals, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        self.selector.register(self.signals, selectors.EVENT_READ)

    def run(self) -> None:
        print(f"listening {self.listener.getsockname()[1]}", flush=True)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj == self.signals:
                    os.read(self.signals, 1)
                    self.begin()
                else:
                    try:
                        key.data.ready()
                    except OSError:
                        self.drop(key.data)

    def accept(self) -> None:
        with suppress(BlockingIOError):
            while True:
                plain, _ = self.listener.accept()
                plain.setblocking(False)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                client = Client(self, plain)
                self.clients.add(client)
                self.selector.register(client.sock, selectors.EVENT_READ, client)

    def begin(self) -> None:
        """Let those flood whose turn is the next one."""
        turn = min((client.turn for client in self.clients if client.turn is not None), default=None)
        for client in self.clients:
            if turn is not None and client.turn == turn:
                client.turn, client.floods = None, True
                self.want(client, selectors.EVENT_WRITE)

    def want(self, client: Client, events: int) -> None:
        self.selector.modify(client.sock, events, client)

    def drop(self, client: Client) -> None:
        self.selector.unregister(client.sock)
        client.sock.close()
        self.clients.discard(client)


if __name__ == "__main__":
    Server(Path(sys.argv[1]) / "server.pem").run()
