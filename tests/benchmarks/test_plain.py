"""The tunnel of benchmarks.plain: bytes arrive unchanged both ways, and streams do not disturb each other."""

from __future__ import annotations

import http.client
import random
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from benchmarks.plain import RECEIVE_BYTES, WINDOW_FRAMES, Kind, Stream
from benchmarks.system import System
from benchmarks.systems.plain import open_plain
from benchmarks.upstream.apiserver import POD_PATH, WRITE_PATH, ApiServer, pod_json
from benchmarks.upstream.other import OtherUpstream
from tests.benchmarks.canned import canned
from tests.benchmarks.upstream.tls import connected, read_head

# More than a window and the socket buffers on the way hold.
LONG_BYTES = 4 * WINDOW_FRAMES * RECEIVE_BYTES
CLIENTS = 16


@pytest.fixture(scope="module")
def plain(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with open_plain(tmp_path_factory.mktemp("plain"), apiserver) as system:
        yield system


@contextmanager
def client(system: System) -> Iterator[http.client.HTTPSConnection]:
    context = ssl.create_default_context(cafile=str(system.endpoint.ca))
    connection = http.client.HTTPSConnection("127.0.0.1", system.endpoint.port, timeout=30, context=context)
    try:
        yield connection
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPSConnection,
    method: str,
    path: str,
    body: bytes | Iterator[bytes] | None = None,
) -> tuple[int, bytes]:
    connection.request(method, path, body, encode_chunked=body is not None and not isinstance(body, bytes))
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_connection_carries_request_after_request(plain: System) -> None:
    with client(plain) as connection:
        for _ in range(3):
            assert ask(connection, "GET", POD_PATH) == (200, pod_json().encode())
        assert ask(connection, "HEAD", POD_PATH) == (200, b"")
        assert ask(connection, "GET", "/bulk/missing")[0] == 404


def test_each_of_many_clients_gets_its_own_bytes(plain: System, apiserver: ApiServer) -> None:
    def talk(number: int) -> None:
        randomness = random.Random(number)
        size = 500_000 + number
        with client(plain) as connection:
            for step in range(5):
                body = randomness.randbytes(randomness.choice([0, 1, 1024, 300_000]))
                assert ask(connection, "PUT", f"{WRITE_PATH}plain{number}", body)[0] in (201, 204)
                assert (apiserver.memory / "sink" / f"plain{number}").read_bytes() == body, step
                assert ask(connection, "GET", f"/bulk/{size}.bin") == (200, bodies[number]), step

    bodies = {
        number: (apiserver.memory / apiserver.body(500_000 + number).rpartition("/")[2]).read_bytes()
        for number in range(CLIENTS)
    }
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(talk, range(CLIENTS)))


def test_a_body_beyond_the_window_arrives_whole_both_ways(plain: System, apiserver: ApiServer) -> None:
    path = apiserver.body(LONG_BYTES)
    body = (apiserver.memory / path.rpartition("/")[2]).read_bytes()
    with client(plain) as connection:
        assert ask(connection, "GET", path) == (200, body)
        assert ask(connection, "PUT", "/sink/long", body)[0] in (201, 204)
        assert (apiserver.memory / "sink" / "long").read_bytes() == body


class Frames:
    """A tunnel's end that keeps what a stream sends."""

    def __init__(self) -> None:
        self.sent: list[Kind] = []

    async def send(self, number: int, kind: Kind, payload: bytes = b"") -> None:
        self.sent.append(kind)


async def test_a_sender_waits_for_credit_when_the_window_is_full(autojump_clock: trio.abc.Clock) -> None:
    frames = Frames()
    stream = Stream(frames, 1)  # type: ignore[arg-type]

    async def send() -> None:
        while True:
            await stream.send_data(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        assert frames.sent == [Kind.DATA] * WINDOW_FRAMES
        stream.deliver(Kind.CREDIT, b"")
        await trio.testing.wait_all_tasks_blocked()
        assert len(frames.sent) == WINDOW_FRAMES * 3 // 2
        nursery.cancel_scope.cancel()


async def test_a_receiver_gives_credit_for_half_a_window_at_a_time() -> None:
    frames = Frames()
    stream = Stream(frames, 1)  # type: ignore[arg-type]
    for _ in range(WINDOW_FRAMES):
        stream.deliver(Kind.DATA, b"x")
    for _ in range(WINDOW_FRAMES // 2 - 1):
        await stream.receive_data()
    assert frames.sent == []
    await stream.receive_data()
    assert frames.sent == [Kind.CREDIT]


def test_a_chunked_body_arrives_whole(plain: System, apiserver: ApiServer) -> None:
    pieces = [b"one", b"two" * 1000, b"three"]
    with client(plain) as connection:
        assert ask(connection, "PUT", "/sink/chunked", iter(pieces))[0] in (201, 204)
    assert (apiserver.memory / "sink" / "chunked").read_bytes() == b"".join(pieces)


def test_a_stalled_reader_delays_no_other_stream(plain: System, apiserver: ApiServer) -> None:
    path = apiserver.body(8 * LONG_BYTES)
    with connected(plain.endpoint) as stalled, client(plain) as connection:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        read_head(stalled)
        short = apiserver.body(LONG_BYTES)
        assert ask(connection, "GET", short)[0] == 200
        assert ask(connection, "GET", POD_PATH) == (200, pod_json().encode())


def test_a_client_that_leaves_ends_its_stream_alone(plain: System, apiserver: ApiServer) -> None:
    path = apiserver.body(LONG_BYTES)
    for _ in range(3):
        with connected(plain.endpoint) as leaving:
            leaving.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            read_head(leaving)
    with client(plain) as connection:
        assert ask(connection, "GET", POD_PATH) == (200, pod_json().encode())


def test_an_answer_that_is_cut_is_cut_for_the_client(tmp_path: Path) -> None:
    def cut(sock: ssl.SSLSocket, head: bytes) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        sock.shutdown(socket.SHUT_RDWR)

    (tmp_path / "upstream").mkdir()
    (tmp_path / "plain").mkdir()
    with canned(tmp_path / "upstream", cut) as server:
        upstream = OtherUpstream(server.endpoint)
        with open_plain(tmp_path / "plain", upstream) as system, client(system) as connection:
            with pytest.raises((http.client.HTTPException, OSError)):
                ask(connection, "GET", "/")
            # The tunnel has survived it.
            with client(system) as other, pytest.raises((http.client.HTTPException, OSError)):
                ask(other, "GET", "/")
    assert len(server.heads) == 2
