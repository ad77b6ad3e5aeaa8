"""The hub's public listener against strangers who mean ill: others are served, and nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from tests.fakes.apiserver import Exchange
from tests.system.chain import Chain
from tests.system.load import parallel, timed
from tests.system.raw import DEADLINE_S, RawClient, Talk, parse
from tests.system.waiting import wait_until
from tests.system.world import WAYS

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]

# Where the ill-meaning come from; honest agents come from 127.0.0.1.
STRANGER = "127.0.0.2"
# proxy.listener.unauthenticated's, which stand in no configuration.
PER_ADDRESS_MAX = 3072
# Below the backlog of any machine, and a divisor of the limit.
ACCEPTED_TOGETHER = 128
# ip(7); Python 3.11's socket module does not name it.
IP_BIND_ADDRESS_NO_PORT = 24
# Below every deadline that a stranger can play for, with room for a machine that runs other tests.
SERVED_WITHIN_S = 8.0


@pytest.fixture(params=WAYS)
def client(request: pytest.FixtureRequest, chain: Chain) -> RawClient:
    return chain.client(request.param)


@pytest.fixture(autouse=True)
def _hub_is_none_the_worse(chain: Chain) -> Iterator[None]:
    """After every test: the hub still runs, has no more open files, and logged lines."""
    hub = chain.world.hub
    assert hub is not None
    assert chain.client("tunnel").get("/version").status == 200
    before = open_files(hub.process.pid)
    yield
    assert hub.process.poll() is None
    wait_until(lambda: open_files(hub.process.pid) <= before + 2)
    chain.check()


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def stranger(chain: Chain, address: str = STRANGER) -> socket.socket:
    """A plain TCP connection of an unknown client."""
    stranger = socket.socket()
    stranger.settimeout(DEADLINE_S)
    # Otherwise the kernel looks for a port that is free to all peers: 5 ms each beside thousands of others.
    stranger.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    stranger.bind((address, 0))
    stranger.connect(("127.0.0.1", chain.world.hub_port))
    return stranger


def greeted(chain: Chain, address: str = STRANGER) -> ssl.SSLSocket:
    """The same, past the TLS handshake. Raises OSError when it is turned away."""
    context = chain.client("tunnel").context()
    plain = stranger(chain, address)
    try:
        return context.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False)
    except OSError:
        plain.close()
        raise


def assert_served(chain: Chain) -> None:
    """An honest agent gets its answer over both paths, unaffected by other clients."""
    for way in WAYS:
        client = chain.client(way)
        assert timed(lambda client=client: client.get("/version")) < SERVED_WITHIN_S  # type: ignore[misc]


def test_idle_connections_of_one_address_are_bounded_and_others_served(chain: Chain) -> None:
    honest = chain.client("tunnel")
    with ExitStack() as stack:
        idle: list[socket.socket] = []
        while len(idle) < PER_ADDRESS_MAX:
            idle += [stack.enter_context(stranger(chain)) for _ in range(ACCEPTED_TOGETHER)]
            # A client is connected before the hub has accepted. The hub accepts in order, so an answer to a
            # later connection shows that it has accepted all of these. Few at a time stay below the backlog:
            # above it, the kernel may drop a connection that its client holds for good.
            assert honest.get("/version").status == 200
        assert_served(chain)
        # One of the oldest makes room. The hub may accept two that came together in either order.
        assert can_enter(chain)
        assert any(ended(each) for each in idle[:ACCEPTED_TOGETHER])
        assert not any(ended(each) for each in idle[-ACCEPTED_TOGETHER:])
        # Another address is another matter.
        with greeted(chain, "127.0.0.3") as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 200")
    # They are gone, and their address may come again.
    wait_until(lambda: can_enter(chain))


FLOODER = """
import select, socket, sys, time
port, address, rate = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
kept, made, began = [], 0, time.monotonic()
while True:
    due = int((time.monotonic() - began) * rate)
    for made in range(made + 1, due + 1):
        kept.append(socket.create_connection(("127.0.0.1", port), 20, (address, 0)))
        kept[-1].sendall(bytes.fromhex(sys.argv[4]))
        if made == 1500:
            print("full", flush=True)
    # More than the hub holds of all together.
    while len(kept) > 5000:
        kept.pop(0).close()
    time.sleep(0.005)
"""
FLOOD_PER_S = 670


@contextmanager
def flooding(chain: Chain, sent: bytes) -> Iterator[None]:
    """A process that connects without end for the block, sends so much and stays."""
    argv = [sys.executable, "-c", FLOODER, str(chain.world.hub_port), STRANGER, str(FLOOD_PER_S), sent.hex()]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"full\n"
            yield
            assert process.poll() is None
        finally:
            process.kill()


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00"], ids=["nothing", "part-of-a-hello"])
def test_a_flood_of_bare_connections_keeps_nobody_of_the_same_address_out(chain: Chain, sent: bytes) -> None:
    served = 0
    with flooding(chain, sent):
        for _ in range(70):
            with suppress(OSError), greeted(chain) as honest:
                honest.sendall(b"GET /readyz HTTP/1.1\r\nHost: h\r\n\r\n")
                served += honest.recv(100).startswith(b"HTTP/1.1 200")
    assert served == 70


def can_enter(chain: Chain) -> bool:
    try:
        greeted(chain).close()
    except OSError:
        return False
    return True


def test_heads_that_never_end_hold_nobody_else_up(chain: Chain) -> None:
    with ExitStack() as stack:
        slow = [stack.enter_context(greeted(chain)) for _ in range(200)]
        for round_number in range(5):
            for connection in slow:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: h\r\nX-A: "[round_number * 9 :][:9])
            assert_served(chain)


def test_stalled_handshakes_hold_nobody_else_up(chain: Chain) -> None:
    with ExitStack() as stack:
        for number in range(200):
            connection = stack.enter_context(stranger(chain))
            if number % 2:
                connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # the beginning of a ClientHello
        assert_served(chain)


def test_strangers_bytes_are_bounded_in_all(chain: Chain) -> None:
    """Heads of nearly a mebibyte that never end: beyond 64 MiB in all the largest are shown out."""
    hub = chain.world.hub
    assert hub is not None
    with ExitStack() as stack:
        hogs = [stack.enter_context(greeted(chain)) for _ in range(90)]
        cut = 0
        for hog in hogs:
            try:
                hog.sendall(b"GET / HTTP/1.1\r\nHost: h\r\nX-A: " + b"x" * 1_000_000)
            except OSError:
                cut += 1
        assert_served(chain)
        wait_until(lambda: sum(map(ended, hogs)) >= 90 - 68)


def ended(connection: socket.socket) -> bool:
    connection.settimeout(0.001)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


NOISE = {
    "random bytes": os.urandom(4096),
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "an old hello": b"\x80\x2e\x01\x00\x02" + bytes(41),
    "a huge record": b"\x16\x03\x01\xff\xff" + bytes(65535),
    "nothing": b"",
}


@pytest.mark.parametrize("noise", NOISE)
def test_bytes_that_are_no_tls_end_the_connection(chain: Chain, noise: str) -> None:
    def speak(_: int) -> None:
        with stranger(chain) as connection:
            # OSError: a shutdown of what the hub has reset already is ENOTCONN, which is no ConnectionError.
            with suppress(OSError):
                connection.sendall(NOISE[noise])
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass

    parallel(50, speak)
    assert_served(chain)


NOT_HTTP = {
    "random bytes": os.urandom(4096),
    "NULs": bytes(65536),
    "blank lines": b"\r\n" * 1000,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method without an end": b"A" * 70000,
}


@pytest.mark.parametrize("what", NOT_HTTP)
def test_bytes_that_are_no_http_are_a_400_or_the_end(chain: Chain, what: str) -> None:
    def speak(_: int) -> bytes:
        with greeted(chain) as connection:
            talk = Talk(connection)
            with suppress(OSError):
                talk.send(NOT_HTTP[what])
                # As openssl s_client does at the end of its input; TLS has no half-close.
                connection.unwrap()
            with suppress(OSError, ValueError):
                talk.rest(5)
            return bytes(talk.received)

    for raw in parallel(20, speak):
        assert raw == b"" or parse(raw).status in (400, 505)
    assert_served(chain)


def test_a_half_closed_client_gets_its_answer_or_an_end(chain: Chain, client: RawClient) -> None:
    path, _ = chain.path(lambda exchange: exchange.answer(200, b"whole"))
    head = client.head(path)
    with client.connect() as connection:
        connection.sendall(head)
        # TCP's half-close, beneath TLS.
        socket.socket.shutdown(connection, socket.SHUT_WR)
        raw = Talk(connection).rest()
    assert raw == b"" or raw.endswith(b"whole")


def test_an_aborted_connection_at_each_point_of_a_request_leaves_nothing(
    chain: Chain, client: RawClient
) -> None:
    path, _ = chain.path(read_all)
    whole = client.head(path, "Content-Length: 10", method="POST") + b"0123456789"
    for size in range(0, len(whole), 37):
        connection = client.connect()
        connection.sendall(whole[:size])
        # A reset, not a farewell.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert_served(chain)


def read_all(exchange: Exchange) -> None:
    exchange.connection.take(int(exchange.header("content-length")[0]))
    exchange.answer()


UPLOADER = """
import socket, ssl, sys
port, ca, head = int(sys.argv[1]), sys.argv[2], sys.stdin.buffer.read()
context = ssl.create_default_context(cafile=ca)
with context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1") as hub:
    hub.sendall(head)
    while True:
        hub.sendall(bytes(65536))
"""


@contextmanager
def uploading(client: RawClient, head: bytes) -> Iterator[subprocess.Popen[bytes]]:
    """A process that sends a body without an end; the head reaches it by stdin, for a token stands in it."""
    ca = str(client.world.folder / "hub" / "tls" / "ca.pem")
    argv = [sys.executable, "-c", UPLOADER, str(client.world.hub_port), ca]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(head)
        process.stdin.close()
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("reading", [True, False])
def test_a_client_killed_within_its_upload_takes_its_request_along(
    chain: Chain, client: RawClient, reading: bool
) -> None:
    gone: list[float] = []

    def take_it(exchange: Exchange) -> None:
        exchange.connection.take(100_000)
        if reading:
            assert exchange.wait_gone()
        else:
            # It reads no more: the client's bytes stand in every buffer on the way when it dies.
            time.sleep(1.5)
            assert exchange.wait_gone()
        gone.append(time.monotonic())

    path, mark = chain.path(take_it)
    with uploading(client, client.head(path, f"Content-Length: {1 << 40}", method="PUT")) as process:
        wait_until(lambda: bool(chain.server.seen(mark)))
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        wait_until(lambda: bool(gone))
    assert gone[0] - killed_at < SERVED_WITHIN_S


def test_one_connection_of_many_refused_requests_ends_in_order(chain: Chain, client: RawClient) -> None:
    """Failed authentication keeps the connection, and is one record each until it is a flood."""
    head = re.sub(rb"Bearer [^\r]*", b"Bearer x", client.head("/version", connection="keep-alive"))
    with client.talk() as talk:
        for _ in range(100):
            talk.send(head)
            assert talk.answer().status == 401
    with client.talk(head * 50) as talk:
        assert [talk.answer().status for _ in range(50)] == [401] * 50


@pytest.mark.long
def test_strangers_who_stay_are_shown_out_in_time(chain: Chain) -> None:
    with ExitStack() as stack:
        began = time.monotonic()
        silent = [stack.enter_context(stranger(chain)) for _ in range(50)]
        slow = [stack.enter_context(greeted(chain)) for _ in range(50)]
        for connection in slow:
            connection.sendall(b"GET /healthz HT")
        for quiet in silent:
            quiet.settimeout(15)
            with suppress(ConnectionError):
                assert quiet.recv(1) == b""
        assert 9 < time.monotonic() - began < 14
        for connection in slow:
            # Drip on: each byte is no new beginning.
            with suppress(OSError):
                connection.sendall(b"T")
        for connection in slow:
            raw = Talk(connection).rest(40)
            assert raw == b"" or parse(raw).status == 408
        assert 31 < time.monotonic() - began < 40
