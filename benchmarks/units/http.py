"""What HTTP/1.1 costs by itself: no sockets, no TLS, no tunnel, no policy.

    .venv/bin/python -m benchmarks.units.http [NAME…] [--runs N]

The two roles talk over a stream in memory that never waits, so no figure holds a pass of the scheduler. The
request is kubectl's: twelve headers, among them a bearer token of 700 bytes; the answer is the API server's,
2 KB of JSON under eight headers. `kept` sends the same headers again and again, as an agent's connection
does; `changed` another value in each request, which is what the first request on a connection costs.
`rewrite` is all that becomes of heads between the two connections, at the hub and at the relay together.
Each figure is CPU time of this process, the median and the least of the runs.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from proxy.exchange.client import ClientConnection
from proxy.exchange.deadlines import Deadlines
from proxy.exchange.server import ServerConnection
from proxy.message.head import RequestHead, ResponseHead
from proxy.message.rewrite import (
    hub_request_head,
    hub_response_head,
    identity_lines,
    relay_request_head,
    relay_response_head,
)

REQUESTS = 3000
BULK_BYTES = 128 * 1024 * 1024
PIECE_BYTES = 64 * 1024
# Chunks with their frames: log lines, what kube-apiserver flushes, a large list. Five times a power of two,
# so that they are cut at another place in each piece and yet repeat soon.
CHUNKS_BYTES = (320, 5120, 40960)

TARGET = b"/api/v1/namespaces/default/pods?limit=500"
AGENT = (
    b"Host: hub.example.com:8443\r\n"
    b"User-Agent: kubectl/v1.37.1 (linux/amd64) kubernetes/4d8f7b2\r\n"
    b"Accept: application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,"
    b"application/json\r\n"
    b"Accept-Encoding: gzip\r\n"
    b"Authorization: Bearer " + b"eyJhbGciOiJFZERTQSJ9" * 35 + b"\r\n"
    b"Kubectl-Command: kubectl get\r\n"
    b"Kubectl-Session: 4f1f5f0e-2b9a-4d0a-9d2d-6f2c1f7a9b11\r\n"
    b"Accept-Language: en\r\n"
    b"Cache-Control: no-cache\r\n"
    b"If-None-Match: \"3f2a\"\r\n"
    b"X-Request-Id: 4711\r\n"
)  # fmt: skip
BODY = b'{"kind":"Table"}' * 128
UPSTREAM = (
    b"Audit-Id: 7f3c1b1e-4a43-4a3e-9b63-1d2f6f9a0c11\r\nCache-Control: no-cache, private\r\n"
    b"Content-Type: application/json\r\n"
    b"X-Kubernetes-Pf-Flowschema-Uid: 0b7ac0f5-1c5b-4e0e-8ea6-2b0d8d3cf2c1\r\n"
    b"X-Kubernetes-Pf-Prioritylevel-Uid: 6f6f1d2b-6d6f-4a58-9c6c-7f9d3b1f1a11\r\n"
    b"Date: Thu, 30 Apr 2026 10:00:00 GMT\r\nVary: Accept\r\n"
)
ANSWER = b"HTTP/1.1 200 OK\r\n" + UPSTREAM + b"Content-Length: 2048\r\n\r\n"
CHUNKED_ANSWER = b"HTTP/1.1 200 OK\r\n" + UPSTREAM + b"Transfer-Encoding: chunked\r\n\r\n"
IDENTITY = (
    (b"impersonate-user", b"agent:probe"),
    (b"impersonate-group", b"acme/platform"),
    (b"impersonate-group", b"acme/sre"),
    (b"impersonate-extra-hawse.dev%2fagent-id", b"3f0c2d5e-2b9a-4d0a-9d2d-6f2c1f7a9b11"),
    (b"impersonate-extra-hawse.dev%2fsession", b"4f1f5f0e-2b9a-4d0a-9d2d-6f2c1f7a9b11"),
)
IDENTITY_LINES = identity_lines(IDENTITY)
API_SERVER = b"10.96.0.1:443"
SERVICE_ACCOUNT = "eyJhbGciOiJSUzI1NiIsImtpZCI6I" * 40


class Peer(trio.abc.Stream):
    """The other side, played from a list: every receive is answered at once, every send is taken."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._at = 0
        self.sent = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        piece = self._pieces[self._at % len(self._pieces)]
        self._at += 1
        return piece

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += len(data)

    async def wait_send_all_might_not_block(self) -> None: ...

    async def aclose(self) -> None: ...


def request(number: int | None = None) -> bytes:
    session = b"" if number is None else b"X-Number: %d\r\n" % number
    return b"GET /clusters/prod" + TARGET + b" HTTP/1.1\r\n" + AGENT + session + b"\r\n"


async def served(head: ResponseHead, *, changed: bool = False) -> float:
    pieces = [request(number) for number in range(REQUESTS)] if changed else [request()]
    connection = ServerConnection(Peer(pieces), Deadlines())
    began = time.process_time()
    for _ in range(REQUESTS):
        await connection.next_request()
        await connection.send_head(head, BODY, end=True)
    return (time.process_time() - began) / REQUESTS * 1e6


async def server_kept() -> float:
    return await served(ResponseHead.decode(await canonical()))


async def server_changed() -> float:
    return await served(ResponseHead.decode(await canonical()), changed=True)


async def server_chunked() -> float:
    return await served(ResponseHead.decode(await canonical(length=False)))


async def asked(answer: list[bytes]) -> float:
    connection = ClientConnection(Peer(answer))
    head = upstream_request(inner_request(await client_request()))
    head.encode()
    began = time.process_time()
    for _ in range(REQUESTS):
        await connection.send_request(head)
        await connection.receive_head()
        while await connection.receive_body():
            pass
        connection.end_exchange()
    return (time.process_time() - began) / REQUESTS * 1e6


async def client_kept() -> float:
    return await asked([ANSWER + BODY])


async def client_chunked() -> float:
    return await asked([CHUNKED_ANSWER + b"800\r\n" + BODY + b"\r\n0\r\n\r\n"])


async def client_request() -> RequestHead:
    """The client's request as the hub's connection read it."""
    head = await ServerConnection(Peer([request()])).next_request()
    assert head is not None
    return head


async def upstream_answer() -> ResponseHead:
    """The API server's answer as the relay's connection read it."""
    connection = ClientConnection(Peer([ANSWER]))
    await connection.send_request(RequestHead.of(b"GET", b"/", ((b"host", b"a"),)))
    return await connection.receive_head()


async def canonical(*, length: bool = True) -> bytes:
    head = await upstream_answer()
    if not length:
        kept = tuple(pair for pair in head.headers if pair[0] != b"content-length")
        head = ResponseHead.of(head.status, head.reason, kept)
    return head.encode()


def inner_request(head: RequestHead) -> RequestHead:
    return hub_request_head(
        head, TARGET, audit_id="01JTD8Z4K8X2Q3M9V7B1N5C6A0", client_ip="192.0.2.7", tail=False
    )


def upstream_request(inner: RequestHead) -> RequestHead:
    return relay_request_head(inner, API_SERVER, SERVICE_ACCOUNT, IDENTITY_LINES)


async def rewrite_request() -> float:
    head = await client_request()
    began = time.process_time()
    for _ in range(REQUESTS):
        inner = inner_request(head).encode()
        upstream_request(RequestHead.decode(inner)).encode()
    return (time.process_time() - began) / REQUESTS * 1e6


async def rewrite_answer() -> float:
    heads = [await upstream_answer() for _ in range(REQUESTS)]
    began = time.process_time()
    for head in heads:
        crossed = relay_response_head(head, API_SERVER).encode()
        hub_response_head(ResponseHead.decode(crossed), b"/clusters/prod", TARGET, b"hub.example.com:8443")
    return (time.process_time() - began) / REQUESTS * 1e6


def chunked(size: int) -> list[bytes]:
    """One period of an endless chunked body, cut into the pieces in which a connection brings it."""
    data = size - len(b"%x\r\n\r\n" % size)
    chunk = b"%x\r\n" % data + bytes(data) + b"\r\n"
    assert len(chunk) == size, "a size whose number is as long as that of its data"
    body = chunk * (PIECE_BYTES // math.gcd(PIECE_BYTES, size))
    return [body[at : at + PIECE_BYTES] for at in range(0, len(body), PIECE_BYTES)]


async def client_bulk(framing: bytes, pieces: list[bytes]) -> float:
    connection = ClientConnection(Peer([b"HTTP/1.1 200 OK\r\n" + framing, *repeated(pieces)]))
    await connection.send_request(RequestHead.of(b"GET", b"/", ((b"host", b"a"),)))
    await connection.receive_head()
    return await received(connection)


async def server_bulk(framing: bytes, pieces: list[bytes]) -> float:
    connection = ServerConnection(Peer([b"POST / HTTP/1.1\r\nHost: a\r\n" + framing, *repeated(pieces)]))
    await connection.next_request()
    return await received(connection)


def repeated(pieces: list[bytes]) -> list[bytes]:
    return pieces * (2 * BULK_BYTES // PIECE_BYTES // len(pieces) + 1)


async def received(connection: ClientConnection | ServerConnection) -> float:
    size = 0
    began = time.process_time()
    while size < BULK_BYTES:
        size += len(await connection.receive_body())
    return (time.process_time() - began) / size * 1e9


async def send_bulk(head: ResponseHead) -> float:
    connection = ServerConnection(Peer([b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"]))
    await connection.next_request()
    await connection.send_head(head)
    piece = bytes(PIECE_BYTES)
    began = time.process_time()
    for _ in range(BULK_BYTES // PIECE_BYTES):
        await connection.send_body(piece)
    return (time.process_time() - began) / BULK_BYTES * 1e9


BY_LENGTH = b"Content-Length: %d\r\n\r\n" % (1 << 40)
BY_CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n"
LENGTH = ((b"content-length", b"%d" % (1 << 40)),)
PIECES = [bytes(PIECE_BYTES)]


@attrs.frozen
class Figure:
    name: str
    unit: str
    measure: Callable[[], Awaitable[float]]


FIGURES = [
    Figure("server, kept", "µs", server_kept),
    Figure("server, changed", "µs", server_changed),
    Figure("server, chunked answer", "µs", server_chunked),
    Figure("client", "µs", client_kept),
    Figure("client, chunked answer", "µs", client_chunked),
    Figure("rewrite, request", "µs", rewrite_request),
    Figure("rewrite, answer", "µs", rewrite_answer),
    Figure("bulk, receive by length, client", "s/GB", partial(client_bulk, BY_LENGTH, PIECES)),
    Figure("bulk, receive by length, server", "s/GB", partial(server_bulk, BY_LENGTH, PIECES)),
    *(
        Figure(f"bulk, receive chunks of {size}, {role}", "s/GB", partial(receive, BY_CHUNKS, chunked(size)))
        for size in CHUNKS_BYTES
        for role, receive in (("client", client_bulk), ("server", server_bulk))
    ),
    Figure("bulk, send by length", "s/GB", partial(send_bulk, ResponseHead.of(200, b"OK", LENGTH))),
    Figure("bulk, send chunked", "s/GB", partial(send_bulk, ResponseHead.of(200, b"OK"))),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="measure only figures whose name holds one of these")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    chosen = [f for f in FIGURES if not options.names or any(name in f.name for name in options.names)]
    gc.freeze()
    for figure in chosen:
        runs = [trio.run(figure.measure) for _ in range(options.runs)]
        median, least = statistics.median(runs), min(runs)
        print(f"{figure.name:40} {median:9.3f} {figure.unit:5} least {least:9.3f}", flush=True)


if __name__ == "__main__":
    main()
