"""The fault proxy does what its commands say; everything else here rests on it."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import attrs
import pytest
import trustme

from tests.faults.control import FaultProxy, Link, Side, Way, open_proxy
from tests.faults.pipe import End

DEADLINE_S = 10.0


@attrs.define(eq=False)
class Target:
    """Accepts connections and leaves them to the test."""

    listener: socket.socket

    @property
    def port(self) -> int:
        port: int = self.listener.getsockname()[1]
        return port

    def accept(self) -> socket.socket:
        accepted, _ = self.listener.accept()
        accepted.settimeout(DEADLINE_S)
        return accepted


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    with open_proxy(tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.fixture
def target() -> Iterator[Target]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        yield Target(listener)


@pytest.fixture
def link(proxy: FaultProxy, target: Target) -> Iterator[Link]:
    opened = proxy.link(target.port)
    yield opened
    opened.refuse()
    opened.cut()


def connect(link: Link) -> socket.socket:
    return socket.create_connection(("127.0.0.1", link.port), DEADLINE_S)


@pytest.fixture
def ends(link: Link, target: Target) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection through the link: its near end and its far one."""
    with connect(link) as near, target.accept() as far:
        yield near, far


Ends = tuple[socket.socket, socket.socket]


def read(end: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer before an end."""
    got = b""
    while len(got) < size and (data := end.recv(size - len(got))):
        got += data
    return got


def how_it_ends(end: socket.socket) -> tuple[bytes, End]:
    """All that still comes, and how it ends."""
    got = b""
    try:
        while data := end.recv(65536):
            got += data
    except ConnectionResetError:
        return got, End.RST
    return got, End.FIN


def silent(end: socket.socket, for_s: float = 0.15) -> bool:
    end.settimeout(for_s)
    try:
        end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(DEADLINE_S)
    return False


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_bytes_and_both_ends_pass_unchanged(link: Link, ends: Ends) -> None:
    near, far = ends
    content = os.urandom(3_000_000)

    def send() -> None:
        near.sendall(content)
        near.shutdown(socket.SHUT_WR)

    sender = threading.Thread(target=send)
    sender.start()
    assert read(far, len(content) + 1) == content
    sender.join()
    # The other direction is open still.
    far.sendall(b"answer")
    assert read(near, 6) == b"answer"
    far.close()
    assert how_it_ends(near) == (b"", End.FIN)
    until(lambda: link.counts().live == 0)
    counts = link.counts()
    assert (counts.opened, counts.cut, counts.up, counts.down) == (1, 0, len(content), 6)


def test_a_reset_is_passed_on(ends: Ends) -> None:
    near, far = ends
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    far.close()
    assert how_it_ends(near)[1] is End.RST


@pytest.mark.parametrize("how", End)
def test_a_cut_ends_both_sides(link: Link, ends: Ends, how: End) -> None:
    assert link.cut(how) == 1
    for end in ends:
        assert how_it_ends(end) == (b"", how)
    assert link.counts().cut == 1


@pytest.mark.parametrize("way", [Way.UP, Way.DOWN])
@pytest.mark.parametrize("how", End)
def test_a_cut_is_exact_to_the_byte(link: Link, ends: Ends, way: Way, how: End) -> None:
    source, sink = ends if way is Way.UP else ends[::-1]
    source.sendall(b"a" * 1000)
    assert read(sink, 1000) == b"a" * 1000
    link.cut(how, after=777, way=way)
    source.sendall(b"b" * 100_000)
    got, ending = how_it_ends(sink)
    assert ending is how
    assert got == b"b" * 777
    with suppress(ConnectionResetError, BrokenPipeError):
        assert how_it_ends(source)[0] == b""


def test_the_next_connections_are_cut_each_at_its_byte(link: Link, target: Target) -> None:
    link.cut_next(5, way=Way.UP, how=End.FIN, times=2)
    for expected in (b"01234", b"01234", b"0123456789"):
        with connect(link) as near, target.accept() as far:
            near.sendall(b"0123456789")
            near.shutdown(socket.SHUT_WR)
            assert how_it_ends(far) == (expected, End.FIN)


@pytest.mark.parametrize("side", [Side.NEAR, Side.FAR])
def test_one_side_is_killed_and_the_other_one_never_hears_of_it(link: Link, ends: Ends, side: Side) -> None:
    killed, left = ends if side is Side.NEAR else ends[::-1]
    link.cut(side=side)
    assert how_it_ends(killed)[1] is End.RST
    left.sendall(b"is anybody there?")
    assert silent(left)
    link.heal()
    assert how_it_ends(left)[1] is End.RST


def test_a_stall_moves_nothing_and_loses_nothing(link: Link, ends: Ends, target: Target) -> None:
    near, far = ends
    link.stall()
    near.sendall(b"up")
    far.sendall(b"down")
    assert silent(near)
    assert silent(far)
    with connect(link) as later, target.accept() as later_far:
        later.sendall(b"later")
        assert silent(later_far)
        link.flow()
        assert read(later_far, 5) == b"later"
    assert read(far, 2) == b"up"
    assert read(near, 4) == b"down"


def test_one_direction_can_be_stalled_alone(link: Link, ends: Ends) -> None:
    near, far = ends
    link.stall(Way.DOWN)
    near.sendall(b"up")
    far.sendall(b"down")
    assert read(far, 2) == b"up"
    assert silent(near)


def test_a_stall_of_those_that_are_there_spares_those_to_come(link: Link, ends: Ends, target: Target) -> None:
    link.stall(later=False)
    with connect(link) as later, target.accept() as later_far:
        later.sendall(b"x")
        assert read(later_far, 1) == b"x"
    ends[0].sendall(b"x")
    assert silent(ends[1])


def test_each_direction_has_its_own_delay(link: Link, ends: Ends) -> None:
    near, far = ends
    link.shape(Way.UP, delay_s=0.1)
    began = time.monotonic()
    near.sendall(b"x")
    read(far, 1)
    assert time.monotonic() - began >= 0.1
    began = time.monotonic()
    far.sendall(b"x")
    read(near, 1)
    assert time.monotonic() - began < 0.1


def test_a_rate_is_kept_with_little_under_way(proxy: FaultProxy, target: Target) -> None:
    slow = proxy.link(target.port, slow=True)
    slow.shape(Way.DOWN, mbit=8)
    with connect(slow) as near, target.accept() as far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        far.settimeout(0.0)
        sent, began = 0, time.monotonic()
        with suppress(BlockingIOError):
            while time.monotonic() - began < 1:
                sent += far.send(b"x" * 4096)
        # What a sender gets rid of at once waits in buffers: the proxy's, and what is left of the sender's.
        assert sent < 120_000
        far.settimeout(DEADLINE_S)
        sender = threading.Thread(target=lambda: far.sendall(b"x" * (500_000 - sent)))
        sender.start()
        assert len(read(near, 500_000)) == 500_000
        took_s = time.monotonic() - began
        sender.join()
    assert 0.45 < took_s < 1.5


def test_bytes_come_in_pieces(link: Link, ends: Ends) -> None:
    near, far = ends
    link.shape(Way.UP, piece_bytes=1)
    near.sendall(b"abcdef")
    assert read(far, 6) == b"abcdef"


def test_refused_connections_are_refused_by_the_kernel_until_accepted_again(
    link: Link, target: Target
) -> None:
    link.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect(link)
    link.refuse(for_s=0.1)
    until(lambda: can_connect(link))


def can_connect(link: Link) -> bool:
    try:
        connect(link).close()
    except ConnectionRefusedError:
        return False
    return True


def test_those_that_are_connected_survive_a_refusal_of_others(link: Link, ends: Ends) -> None:
    link.refuse()
    ends[0].sendall(b"x")
    assert read(ends[1], 1) == b"x"


def test_garbage_is_answered_to_whatever_comes(link: Link) -> None:
    link.answer(b"\x15\x03\x01garbage", for_s=0.3)
    with connect(link) as near:
        near.sendall(b"hello")
        assert how_it_ends(near) == (b"\x15\x03\x01garbage", End.FIN)


def test_an_impostor_with_a_certificate_reads_a_head_and_answers_it(link: Link, tmp_path: Path) -> None:
    authority = trustme.CA()
    pem = tmp_path / "impostor.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    link.answer(b"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: {accept}\r\n\r\n", certificate=pem, hold=True)
    with closing(context.wrap_socket(connect(link), server_hostname="127.0.0.1")) as near:
        near.sendall(b"GET /x HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += near.recv(4096)
        assert b"Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
        counts = link.counts()
        assert counts.live == 1
        assert counts.heads[0].startswith("GET /x HTTP/1.1\r\n")
        assert silent(near)
    until(lambda: link.counts().live == 0)


def test_connections_are_killed_at_an_age_however_busy_they_are(link: Link, ends: Ends) -> None:
    near, _ = ends
    link.limit_age(0.3)
    began = time.monotonic()
    with suppress(ConnectionResetError, BrokenPipeError):
        while time.monotonic() - began < DEADLINE_S:
            near.sendall(b"x")
            time.sleep(0.01)
    assert 0.2 < time.monotonic() - began < 2


def test_idle_connections_are_closed_and_busy_ones_are_not(link: Link, ends: Ends, target: Target) -> None:
    link.limit_idle(0.4, End.FIN)
    with connect(link) as idle, target.accept():
        for _ in range(12):
            ends[0].sendall(b"x")
            assert read(ends[1], 1) == b"x"
            time.sleep(0.05)
        assert how_it_ends(idle) == (b"", End.FIN)


def test_an_idle_connection_can_be_forgotten(link: Link, ends: Ends) -> None:
    link.limit_idle(0.1, None)
    until(lambda: link.counts().cut == 1)
    ends[0].sendall(b"x")
    assert silent(ends[1])
    assert link.counts().silence_max_s >= 0.1


def test_a_target_that_is_not_there_is_a_reset(proxy: FaultProxy, target: Target) -> None:
    link = proxy.link(target.port)
    target.listener.close()
    with pytest.raises(ConnectionResetError), connect(link) as near:
        near.recv(1)


def test_a_mistaken_command_is_told_and_changes_nothing(proxy: FaultProxy, link: Link) -> None:
    with pytest.raises(AssertionError, match="KeyError"):
        proxy.ask("cut", link="nothing")
    with pytest.raises(AssertionError, match="not a valid End"):
        proxy.ask("cut", link=link.name, how="gently", side="both", after=None, way="up", only=None)
    assert link.counts().cut == 0
