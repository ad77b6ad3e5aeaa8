"""A receiver of webhooks over real TLS on loopback, which answers as it is told."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import attrs
import trustme


@attrs.frozen
class Posted:
    """A message as it arrived."""

    path: str
    headers: dict[str, str]
    """By their names in lower case."""
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@attrs.define(eq=False)
class FakeReceiver:
    """What it has received; `answer` is called for each message, in a thread of its own."""

    port: int
    ca_file: Path
    posted: list[Posted] = attrs.Factory(list)
    answer: Callable[[Posted], tuple[int, dict[str, str]]] = attrs.field(default=lambda _: (200, {}))
    hangs: threading.Event = attrs.Factory(threading.Event)
    """What `hang` waits for; set at the end."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/hook?key=hunter2"

    def hang(self, _: Posted) -> tuple[int, dict[str, str]]:
        self.hangs.wait(60)
        return 200, {}


@contextmanager
def running_receiver(folder: Path) -> Iterator[FakeReceiver]:
    """Serve a receiver for the block. Its CA's file is in the folder."""
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1", "localhost").configure_cert(context)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            posted = Posted(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            receiver.posted.append(posted)
            status, fields = receiver.answer(posted)
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = False

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that leaves is no error of the server's."""

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    ca_file = folder / f"receiver-{server.server_address[1]}.pem"
    ca.cert_pem.write_to_path(ca_file)
    receiver = FakeReceiver(server.server_address[1], ca_file)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.hangs.set()
        server.shutdown()
        server.server_close()
        thread.join()
