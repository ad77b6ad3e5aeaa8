"""A receiver of webhooks over real TLS on loopback, which answers as it is told."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import trustme

from tests.fakes.https import Asked, Reply, serve_https


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

    def answer(asked: Asked) -> Reply:
        posted = Posted(asked.path, asked.headers, asked.body)
        receiver.posted.append(posted)
        return *receiver.answer(posted), b""

    with serve_https("127.0.0.1", context, answer) as port:
        ca_file = folder / f"receiver-{port}.pem"
        ca.cert_pem.write_to_path(ca_file)
        receiver = FakeReceiver(port, ca_file)
        try:
            yield receiver
        finally:
            receiver.hangs.set()
