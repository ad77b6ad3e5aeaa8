from __future__ import annotations

import errno
import socket
import struct
from pathlib import Path

import pytest
import trio
from trio.testing import (
    assert_checkpoints,
    assert_no_checkpoints,
    check_half_closeable_stream,
    wait_all_tasks_blocked,
)

from tests.fakes.blackhole import swallow
from tests.fakes.clogged import clog
from tests.tunnel.stream_pairs import tcp_pair
from tunnel.net import tcp
from tunnel.net.tcp import _TUNED, TCPListener, TCPStream, bind_socket_to_peer

LINUX = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="an option of Linux")


async def fill(stream: TCPStream) -> None:
    await clog(stream, lambda: stream.send_nowait(bytes(65536)))


@pytest.mark.usefixtures("checkpoint_per_call")
async def test_it_passes_trios_conformance_suite() -> None:
    async def make_clogged() -> tuple[TCPStream, TCPStream]:
        near, far = await tcp_pair()
        await fill(near)
        await fill(far)
        return near, far

    await check_half_closeable_stream(tcp_pair, make_clogged)


async def test_sends_without_a_wait_checkpoint_after_a_bounded_number() -> None:
    near, far = await tcp_pair()
    async with near, far:
        for _ in range(3):
            for _ in range(tcp.SENDS_PER_PASS - 1):
                with assert_no_checkpoints():
                    await near.send_all(b"x")
            with assert_checkpoints():
                await near.send_all(b"x")


async def test_a_receive_checkpoints_unless_the_last_one_was_full_and_then_after_a_bound() -> None:
    near, far = await tcp_pair()
    async with near, far:
        await near.send_all(bytes(100))
        with assert_checkpoints():
            assert len(await far.receive_some()) == 100
        await near.send_all(bytes(100))
        with assert_checkpoints():
            await far.receive_some(1)
        for _ in range(tcp.RECEIVES_PER_PASS - 1):
            with assert_no_checkpoints():
                await far.receive_some(1)
        with assert_checkpoints():
            await far.receive_some(1)
        with assert_no_checkpoints():
            assert len(await far.receive_some(1000)) == 100 - tcp.RECEIVES_PER_PASS - 1
        # Nothing is there any more, and the last receive knew it.
        await near.send_all(b"x")
        with assert_checkpoints():
            await far.receive_some()


async def test_a_full_receive_with_nothing_behind_it_waits() -> None:
    near, far = await tcp_pair()
    async with near, far, trio.open_nursery() as nursery:
        await near.send_all(b"xy")
        assert await far.receive_some(2) == b"xy"
        nursery.start_soon(near.send_all, b"z")
        with assert_checkpoints():
            assert await far.receive_some(2) == b"z"


async def test_large_sends_arrive_whole_in_both_directions_at_once() -> None:
    near, far = await tcp_pair()
    payload = bytes(range(256)) * 40_000

    async def receive(stream: TCPStream) -> None:
        received = bytearray()
        while len(received) < len(payload):
            received += await stream.receive_some()
        assert received == payload

    async with near, far, trio.open_nursery() as nursery:
        for stream in (near, far):
            nursery.start_soon(stream.send_all, payload)
            nursery.start_soon(receive, stream)


async def test_a_second_task_in_the_same_direction_is_refused() -> None:
    near, far = await tcp_pair()
    await fill(near)

    async def closed_under_it(call: object) -> None:
        assert callable(call)
        with pytest.raises(trio.ClosedResourceError):
            await call()

    async with far, trio.open_nursery() as nursery:
        nursery.start_soon(closed_under_it, lambda: near.send_all(b"x"))
        nursery.start_soon(closed_under_it, near.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await near.send_all(b"y")
        with pytest.raises(trio.BusyResourceError):
            near.send_nowait(b"y")
        with pytest.raises(trio.BusyResourceError):
            await near.wait_send_all_might_not_block()
        with pytest.raises(trio.BusyResourceError):
            await near.send_eof()
        with pytest.raises(trio.BusyResourceError):
            await near.receive_some()
        await near.aclose()


@pytest.mark.usefixtures("checkpoint_per_call")
async def test_a_sender_that_lets_the_others_run_is_alone_and_notices_a_close() -> None:
    near, far = await tcp_pair()
    raised: list[type[BaseException]] = []

    async def send() -> None:
        try:
            await near.send_all(b"x")
        except (trio.BusyResourceError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raised.append(type(exc))

    async def close() -> None:
        near.close_nowait()

    async with far:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(send)
        assert raised == [trio.BusyResourceError]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(close)
        assert raised[1:] == [trio.ClosedResourceError]


async def test_nothing_is_sent_after_the_end_or_the_close() -> None:
    for end in (TCPStream.send_eof, TCPStream.aclose):
        near, far = await tcp_pair()
        async with near, far:
            await end(near)
            with pytest.raises(trio.ClosedResourceError):
                await near.send_all(b"x")
            with pytest.raises(trio.ClosedResourceError):
                near.send_nowait(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await near.send_eof()


async def test_a_second_receiver_is_refused_right_after_a_full_receive_as_well() -> None:
    near, far = await tcp_pair()
    async with near, far, trio.open_nursery() as nursery:
        await near.send_all(b"x")
        await far.receive_some(1)
        nursery.start_soon(far.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await far.receive_some()
        nursery.cancel_scope.cancel()


async def test_send_nowait_sends_as_much_as_the_kernel_takes() -> None:
    near, far = await tcp_pair()
    async with near, far:
        assert near.send_nowait(b"hello") == 5
        await fill(near)
        assert near.send_nowait(b"more") == 0
        assert (await far.receive_some()).startswith(b"hello")


async def test_a_cancelled_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    near, far = await tcp_pair()
    async with near, far:
        with trio.move_on_after(1) as scope:
            await far.receive_some()
        assert scope.cancelled_caught
        await near.send_all(b"late")
        with trio.CancelScope() as scope:
            scope.cancel()
            await far.receive_some()
        assert await far.receive_some() == b"late"


async def test_a_reset_is_a_broken_connection_on_both_sides_of_it() -> None:
    near, far = await tcp_pair()
    async with near, far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await far.aclose()
        with pytest.raises(trio.BrokenResourceError, match="Connection reset"):
            await near.receive_some()
        with pytest.raises(trio.BrokenResourceError, match="Broken pipe"):
            await near.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError, match="not connected"):
            await near.send_eof()


async def test_taking_over_leaves_the_trio_stream_closed_and_nothing_behind() -> None:
    async with TCPListener((await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]) as listener:
        old = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        near = TCPStream.take_over(old)
        async with near, await listener.accept() as far:
            assert old.socket.fileno() == -1
            assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert near.socket.getpeername() == far.socket.getsockname()
            await near.send_all(b"x")
            assert await far.receive_some() == b"x"
    assert repr(near) == "<TCPStream closed>"


async def test_an_accepted_connection_has_the_same_options_as_a_dialled_one() -> None:
    async with TCPListener((await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]) as listener:
        port = listener.socket.getsockname()[1]
        async with TCPStream.take_over(await trio.open_tcp_stream("127.0.0.1", port)) as near:
            async with await listener.accept() as far:
                assert [far.getsockopt(level, option) for level, option, _ in _TUNED] == [
                    near.getsockopt(level, option) for level, option, _ in _TUNED
                ]
                assert far.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_listener_accepts_several_connections_in_a_pass_and_then_waits() -> None:
    async with TCPListener((await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]) as listener:
        address = listener.socket.getsockname()
        many = tcp.ACCEPTS_PER_PASS + 1
        clients = [await trio.open_tcp_stream(*address) for _ in range(many)]
        servers = [await listener.accept()]
        with assert_no_checkpoints():
            servers += [await listener.accept() for _ in range(many - 2)]
        with assert_checkpoints():
            servers.append(await listener.accept())
        assert [each.peer for each in servers] == [each.socket.getsockname() for each in clients]
        with trio.move_on_after(0.01) as scope:
            await listener.accept()
        assert scope.cancelled_caught
        for each in (*clients, *servers):
            await each.aclose()


async def test_a_connection_that_failed_before_its_accept_is_skipped() -> None:
    class Flaky(socket.socket):
        left = 2

        def accept(self) -> tuple[socket.socket, tuple[str, int]]:
            if self.left:
                self.left -= 1
                raise ConnectionAbortedError(errno.ECONNABORTED, "aborted")
            return super().accept()

    async with TCPListener((await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]) as listener:
        flaky = Flaky(fileno=listener.socket.detach())
        object.__setattr__(listener, "socket", flaky)
        async with (
            await trio.open_tcp_stream(*flaky.getsockname()) as near,
            await listener.accept() as far,
        ):
            await near.send_all(b"x")
            assert await far.receive_some() == b"x"
            assert flaky.left == 0


async def test_closing_a_listener_wakes_its_accept() -> None:
    listener = TCPListener((await trio.open_tcp_listeners(0, host="127.0.0.1"))[0])

    async def accept() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await wait_all_tasks_blocked()
        await listener.aclose()
    await accept()


async def test_a_listener_that_is_closed_within_a_pass_accepts_no_more() -> None:
    listener = TCPListener((await trio.open_tcp_listeners(0, host="127.0.0.1"))[0])
    async with await trio.open_tcp_stream(*listener.socket.getsockname()), await listener.accept():
        await listener.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()


async def test_a_connection_is_accepted_without_an_address(tmp_path: Path) -> None:
    """As on macOS for a client that has gone already. A Unix socket's client has none either."""
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(str(tmp_path / "socket"))
    listening.listen()
    async with (
        TCPListener(trio.SocketListener(listening)) as listener,
        await trio.open_unix_socket(tmp_path / "socket"),
        await listener.accept() as accepted,
    ):
        assert accepted.peer is None


async def test_receive_nowait_returns_received_bytes_and_distinguishes_none_from_the_end() -> None:
    near, far = await tcp_pair()
    async with near, far:
        with assert_no_checkpoints():
            assert near.receive_nowait(100) is None
        await far.send_all(b"abc")
        await trio.lowlevel.wait_readable(near.socket)
        assert near.receive_nowait(100) == b"abc"
        await far.send_eof()
        await trio.lowlevel.wait_readable(near.socket)
        assert near.receive_nowait(100) == b""


async def test_without_a_wait_a_lost_and_a_closed_connection_raise_as_with_one() -> None:
    near, far = await tcp_pair()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close_nowait()
    far.close_nowait()
    await trio.lowlevel.wait_readable(near.socket)
    with pytest.raises(trio.BrokenResourceError):
        near.receive_nowait(100)
    near.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        near.receive_nowait(100)


async def test_closing_without_a_wait_wakes_waiting_tasks() -> None:
    near, far = await tcp_pair()
    async with far, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_some()

        await trio.testing.wait_all_tasks_blocked()
        near.close_nowait()


def test_a_bound_connection_is_given_up_within_half_a_minute() -> None:
    assert tcp.PROBE_IDLE_S + tcp.PROBE_INTERVAL_S * tcp.PROBES <= tcp.CUT_S <= 25


async def test_a_socket_that_takes_no_options_any_more_is_a_stream_all_the_same() -> None:
    """As on macOS, where the peer of an accepted connection has gone already."""

    class Left(socket.socket):
        def setsockopt(self, *_: object) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    near, far = socket.socketpair()
    with far:
        family = socket.AF_INET, socket.SOCK_STREAM, 0
        stream = TCPStream(Left(*family, fileno=near.detach()))
        bind_socket_to_peer(stream.socket)
        far.close()
        assert await stream.receive_some() == b""
        await stream.aclose()


@LINUX
async def test_a_bond_is_lifted_only_from_a_sender_into_a_closed_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "CUT_S", 1)
    bonds = tcp.Bonds()
    pairs = idle, stalled, closed = [await tcp_pair() for _ in range(3)]
    for near, _ in pairs:
        bonds.bind(near.socket)
    for name, value in (("TCP_KEEPIDLE", tcp.PROBE_IDLE_S), ("TCP_KEEPINTVL", tcp.PROBE_INTERVAL_S)):
        assert idle[0].getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value

    def bounds_ms() -> list[int]:
        return [near.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) for near, _ in (idle, stalled)]

    async def become(wanted: list[int]) -> None:
        with trio.fail_after(8):
            for _ in iter(bounds_ms, wanted):
                await trio.sleep(0.02)

    assert bounds_ms() == [1000, 1000]
    await fill(stalled[0])
    # It is forgotten only once nothing holds it any more.
    closed[0].close_nowait()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bonds.run)
        await become([1000, 0])
        await stalled[0].send_eof()
        while await stalled[1].receive_some():
            pass
        await become([1000, 1000])
        nursery.cancel_scope.cancel()
    for pair in pairs:
        for end in pair:
            await end.aclose()


@LINUX
@pytest.mark.parametrize(
    ("probes", "unacknowledged", "unsent", "lifted"),
    [
        (0, 0, 1, True),
        (2, 0, 1, True),
        (3, 0, 1, False),
        (0, 1, 1, False),
        (0, 0, 0, False),
        (0, 0, None, False),
    ],
)
def test_a_bond_is_lifted_while_probes_of_a_closed_window_are_answered(
    probes: int, unacknowledged: int, unsent: int | None, lifted: bool
) -> None:
    class Told(socket.socket):
        def getsockopt(self, *_: object) -> bytes:
            # An old kernel does not report unsent bytes.
            info = tcp._TCP_INFO.pack(probes, unacknowledged, unsent or 0)
            return info if unsent is not None else info[:-4]

    with Told() as sock:
        assert tcp._stands_still(sock) is lifted


@LINUX
async def test_sending_much_to_a_peer_that_acknowledges_nothing_breaks_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "CUT_S", 1)
    bonds = tcp.Bonds()
    near, far = await tcp_pair()
    bonds.bind(near.socket)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bonds.run)
        for end in (near, far):
            swallow(end.socket)
        await fill(near)
        with trio.fail_after(15), pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        nursery.cancel_scope.cancel()
    for end in (near, far):
        await end.aclose()


@LINUX
async def test_a_peer_that_reads_nothing_for_long_does_not_count_as_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "CUT_S", 1)
    bonds = tcp.Bonds()
    kept, slow = await tcp_pair()
    other, far = await tcp_pair()
    bonds.bind(kept.socket)
    tcp.bind_socket_to_peer(other.socket)
    for stream in (kept, other):
        await fill(stream)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bonds.run)
        # The kernel by itself gives it up.
        with trio.fail_after(8), pytest.raises(trio.BrokenResourceError):
            await other.receive_some()
        received = 0
        await kept.send_eof()
        with trio.fail_after(8):
            while data := await slow.receive_some():
                received += len(data)
        assert received > 65536
        nursery.cancel_scope.cancel()
    for stream in (kept, slow, other, far):
        await stream.aclose()


@LINUX
@pytest.mark.parametrize("sending", [False, True])
async def test_the_kernel_gives_up_a_peer_that_is_out_of_reach(
    sending: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PROBE_IDLE_S", "PROBE_INTERVAL_S", "PROBES", "CUT_S"):
        monkeypatch.setattr(tcp, name, 1)
    near, far = await tcp_pair()
    tcp.bind_socket_to_peer(near.socket)
    for end in (near, far):
        swallow(end.socket)
    if sending:
        await near.send_all(b"into the dark")
    with trio.fail_after(8), pytest.raises(trio.BrokenResourceError):
        await near.receive_some()
    # A connection that is not bound knows nothing yet.
    with trio.move_on_after(0.05) as patience:
        await far.receive_some()
    assert patience.cancelled_caught
    for end in (near, far):
        await end.aclose()
