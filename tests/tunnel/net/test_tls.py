from __future__ import annotations

import gc
import shutil
import ssl
import subprocess
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import (
    check_one_way_stream,
    check_two_way_stream,
    lockstep_stream_pair,
    memory_stream_pair,
    wait_all_tasks_blocked,
)

from tests.fakes.clogged import clog
from tests.tunnel.certificates import authority, ca_pem, contexts
from tests.tunnel.passes import counted_passes
from tests.tunnel.stream_pairs import AnyStream, handshake, receive_exactly, tcp_pair
from tunnel.net.connect import client_context
from tunnel.net.fairness import TASKS_PER_PASS, fairness
from tunnel.net.tcp import TCPStream
from tunnel.net.tls import (
    CROWDED_BYTES_MAX,
    FAREWELL_S,
    RECORD_BYTES_MAX,
    SEND_BYTES_MAX,
    HandshakeFailed,
    TLSStream,
    _buffers,
)

PairMaker = Callable[[], Awaitable[tuple[AnyStream, AnyStream]]]

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


async def memory_pair() -> tuple[AnyStream, AnyStream]:
    return memory_stream_pair()


async def lockstep_pair() -> tuple[AnyStream, AnyStream]:
    return lockstep_stream_pair()


class Dribble(trio.abc.Stream):
    """Passes on at most as many bytes a read as the next of `sizes` says, over and over."""

    def __init__(self, inner: AnyStream, sizes: list[int]) -> None:
        self.inner = inner
        self.sizes = sizes
        self.reads = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        self.reads += 1
        return await self.inner.receive_some(self.sizes[self.reads % len(self.sizes)])

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.inner.aclose()


@pytest.fixture(autouse=True)
def left_empty() -> Iterator[None]:
    """However a test has ended its streams, the next one finds nothing of theirs in the buffers."""
    yield
    assert not _buffers.incoming.pending
    assert not _buffers.outgoing.pending


@pytest.mark.usefixtures("checkpoint_per_call")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("make_pair", [memory_pair, tcp_pair])
async def test_it_passes_trios_conformance_suite(make_pair: PairMaker, version: ssl.TLSVersion) -> None:
    async def make() -> tuple[TLSStream, TLSStream]:
        return await handshake(await make_pair(), version)

    async def make_clogged() -> tuple[TLSStream, TLSStream]:
        return await handshake(await lockstep_pair(), version)

    async def make_swapped() -> tuple[TLSStream, TLSStream]:
        client, server = await make()
        return server, client

    await check_two_way_stream(make, make_clogged)
    # The suite's first stream is the client; the server's side differs by its session tickets.
    await check_one_way_stream(make_swapped, None)


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=15, deadline=None)
@given(
    payload_sizes=st.lists(
        st.sampled_from([0, 1, 100, RECORD_BYTES_MAX, RECORD_BYTES_MAX + 1, 7 * RECORD_BYTES_MAX, 300_000]),
        min_size=1,
        max_size=4,
    ),
    dribble=st.lists(
        st.sampled_from([1, 5, 333, 16_000, 16_406, 40_000, 65_536]), min_size=1, max_size=5
    ).filter(lambda sizes: max(sizes) > 300),
    max_bytes=st.sampled_from([None, 7000, 100_000]),
)
async def test_bytes_survive_any_cutting(
    version: ssl.TLSVersion, payload_sizes: list[int], dribble: list[int], max_bytes: int | None
) -> None:
    near, far = memory_stream_pair()
    client, server = await handshake((Dribble(near, dribble), Dribble(far, dribble)), version)
    payloads = [bytes([index + 1]) * size for index, size in enumerate(payload_sizes)]
    expected = b"".join(payloads)

    async def send(stream: TLSStream) -> None:
        for payload in payloads:
            await stream.send_all(payload)

    async def receive(stream: TLSStream) -> None:
        assert await receive_exactly(stream, len(expected), max_bytes) == expected

    async with trio.open_nursery() as nursery:
        for stream in (client, server):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)
    await client.aclose()
    assert await server.receive_some() == b""
    await server.aclose()


async def test_one_wakeup_returns_all_received_records() -> None:
    client, server = await handshake(memory_stream_pair())
    for _ in range(3):
        await client.send_all(bytes(10_000))
    assert len(await server.receive_some()) == 30_000
    await client.aclose()
    await server.aclose()


async def test_buffers_are_fed_by_the_record_and_stay_small() -> None:
    client, server = await handshake(memory_stream_pair())
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(1_000_000))
        while len(received) < 1_000_000:
            received += await server.receive_some()
            assert server._incoming.pending <= RECORD_BYTES_MAX
            assert client._outgoing.pending <= RECORD_BYTES_MAX
    await client.aclose()
    await server.aclose()


async def test_others_run_while_tiny_records_are_taken_apart() -> None:
    records = 10_000
    servers: list[TLSStream] = []
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            client, server = await handshake(memory_stream_pair())
            servers.append(server)
            for _ in range(records):
                await client.send_all(b"a")
        taken = 0
        passes: list[int] = []

        async def read(server: TLSStream) -> None:
            nonlocal taken
            left = records
            while left:
                left -= (came := len(await server.receive_some()))
                taken += came

        async def watch() -> None:
            while taken < 4 * records:
                before = taken
                await trio.lowlevel.checkpoint()
                passes.append(taken - before)

        for server in servers:
            nursery.start_soon(read, server)
        nursery.start_soon(watch)
    # Only the first pieces, come as they are; then one stream in a pass has its turn.
    assert sum(many > 2 * CROWDED_BYTES_MAX // 22 for many in passes) <= 4
    assert len(passes) > 20


async def test_a_bounded_number_of_concurrent_handshakes_proceeds_in_a_pass(
    monkeypatch: pytest.MonkeyPatch, mock_clock: trio.testing.MockClock
) -> None:
    advance = TLSStream._advance_handshake

    def counting(stream: TLSStream) -> bool:
        if stream._server_side and stream._incoming.pending:
            passes.note()
        return advance(stream)

    monkeypatch.setattr(TLSStream, "_advance_handshake", counting)
    async with trio.open_nursery() as nursery:
        with counted_passes() as passes:
            for _ in range(5 * TASKS_PER_PASS):
                nursery.start_soon(handshake, memory_stream_pair())
            await wait_all_tasks_blocked()
    assert passes.noted.total() >= 5 * TASKS_PER_PASS
    assert passes.most <= TASKS_PER_PASS


async def test_handshakes_that_wait_for_a_pass_do_not_delay_known_peers() -> None:
    common = fairness()
    common._tasks_left = 0
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(handshake, memory_stream_pair())
        await wait_all_tasks_blocked()
        shaking = len(nursery.child_tasks)
        nursery.start_soon(common.wait)
        await wait_all_tasks_blocked()
        common._waiting.unpark(2)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == shaking
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_end_without_close_notify_is_broken_and_not_an_end(version: ssl.TLSVersion) -> None:
    near, far = memory_stream_pair()
    client, server = await handshake((near, far), version)
    await client.send_all(b"all that came")
    await near.aclose()
    assert await server.receive_some() == b"all that came"
    for _ in range(2):
        with pytest.raises(trio.BrokenResourceError, match="without a TLS close_notify"):
            await server.receive_some()
    await server.aclose()
    await client.aclose()


@pytest.mark.parametrize("version", VERSIONS)
async def test_an_end_in_the_middle_of_a_record_delivers_whole_records_only(version: ssl.TLSVersion) -> None:
    near, far = memory_stream_pair()
    client, server = await handshake((near, far), version)
    await client.send_all(b"whole")
    # Seven bytes of the second record never leave.
    hook, near.send_stream.send_all_hook = near.send_stream.send_all_hook, None
    await client.send_all(b"torn")
    record = near.send_stream.get_data_nowait()
    near.send_stream.send_all_hook = hook
    await trio.lowlevel.checkpoint()
    far.receive_stream.put_data(bytes(record)[:-7])
    far.receive_stream.put_eof()
    assert await server.receive_some() == b"whole"
    with pytest.raises(trio.BrokenResourceError, match="without a TLS close_notify"):
        await server.receive_some()
    await server.aclose()
    await client.aclose()


async def test_a_corrupted_record_breaks_the_stream_and_alerts_the_peer() -> None:
    near, far = memory_stream_pair()
    client, server = await handshake((near, far))
    far.receive_stream.put_data(b"\x17\x03\x03\x00\x20" + bytes(32))
    # Newer versions of OpenSSL name the layer, older ones the fault.
    with pytest.raises(trio.BrokenResourceError, match=r"bad record mac|record layer failure"):
        await server.receive_some()
    with pytest.raises(trio.BrokenResourceError, match=r"bad record mac|record layer failure"):
        await server.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError, match="alert bad record mac"):
        await client.receive_some()
    await client.aclose()
    await server.aclose()


async def test_bytes_that_are_no_record_are_refused_before_their_length_is_received() -> None:
    near, far = memory_stream_pair()
    client, server = await handshake((near, far))
    far.receive_stream.put_data(b"\x17\x03\x03\xff\xff" + bytes(10))
    with pytest.raises(trio.BrokenResourceError, match=r"packet length too long|record layer failure"):
        await server.receive_some()
    await client.aclose()
    await server.aclose()


@pytest.mark.parametrize("version", VERSIONS)
async def test_after_the_peers_close_notify_we_may_still_send(version: ssl.TLSVersion) -> None:
    near, far = memory_stream_pair()
    client, server = await handshake((near, far), version)
    with pytest.raises(ssl.SSLError):
        # It says close_notify, and complains that ours has not come.
        client.ssl_object.unwrap()
    # What stands behind it is ignored (RFC 8446 6.1).
    await near.send_all(client._outgoing.read() + b"\x17\x03\x03\x00\x20" + bytes(32))
    assert await server.receive_some() == b""
    await server.send_all(b"answer")
    assert await client.receive_some() == b"answer"
    await server.aclose()
    await trio.aclose_forcefully(client)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("make_pair", [memory_pair, tcp_pair])
@pytest.mark.parametrize("said", [b"", b"said before"])
async def test_after_our_close_notify_the_peer_is_still_heard(
    version: ssl.TLSVersion, make_pair: PairMaker, said: bytes
) -> None:
    client, server = await handshake(await make_pair(), version)
    if said:
        await server.send_all(said)
        assert await client.receive_some() == said
    await server.send_close_notify()
    assert await client.receive_some() == b""
    with pytest.raises(trio.BrokenResourceError, match="an earlier send"):
        await server.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError, match="an earlier send"):
        server.send_nowait(b"x")
    with pytest.raises(trio.BrokenResourceError, match="an earlier send"):
        await server.send_close_notify()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(100_000))
        assert await receive_exactly(server, 100_000) == bytes(100_000)
    await client.aclose()
    assert await server.receive_some() == b""
    await server.aclose()


async def test_a_close_notify_waits_for_a_peer_that_reads_late(autojump_clock) -> None:
    client, server = await handshake(await tcp_pair())
    while server.send_nowait(bytes(16_000)):
        pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.send_close_notify)
        await trio.sleep(10 * FAREWELL_S)
        with trio.fail_after(60):
            while await client.receive_some():
                pass
    await trio.aclose_forcefully(server)
    await trio.aclose_forcefully(client)


async def test_a_close_notify_without_a_wait_follows_queued_bytes() -> None:
    client, server = await handshake(await tcp_pair())
    while server.send_nowait(bytes(16_000)):
        pass
    assert not server.send_close_notify_nowait()
    while not server.send_nowait(b""):
        assert await client.receive_some()
    while await client.receive_some():
        pass
    with pytest.raises(trio.BrokenResourceError):
        server.send_nowait(b"x")
    await trio.aclose_forcefully(server)
    await trio.aclose_forcefully(client)


async def test_a_cancelled_close_notify_loses_no_received_bytes(autojump_clock) -> None:
    client, server = await handshake(lockstep_stream_pair())
    with trio.move_on_after(FAREWELL_S):
        await server.send_close_notify()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"x")
        assert await server.receive_some() == b"x"
    # A part of it may be out, and is not said again.
    began = trio.current_time()
    await server.aclose()
    assert trio.current_time() == began
    await trio.aclose_forcefully(client)


async def test_there_is_no_half_close_of_our_own() -> None:
    client, server = await handshake(memory_stream_pair())
    assert not isinstance(client, trio.abc.HalfCloseableStream)
    await client.aclose()
    await server.aclose()


async def test_send_nowait_sends_as_much_as_the_kernel_takes_and_the_rest_with_the_next() -> None:
    client, server = await handshake(await tcp_pair())
    assert client.send_nowait(b"first ")
    assert await server.receive_some() == b"first "
    size = 0
    while client.send_nowait(bytes(16_000)):
        size += 16_000
    assert client._held
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, b"")
        while len(received) < size + 16_000:
            received += await server.receive_some()
    assert not client._held
    assert received == bytes(size + 16_000)
    await client.send_all(b"last")
    assert await server.receive_some() == b"last"
    await client.aclose()
    with pytest.raises(trio.ClosedResourceError):
        client.send_nowait(b"x")
    await server.aclose()


@pytest.mark.parametrize("waiting", [b"", b"x", bytes(3 * SEND_BYTES_MAX)], ids=["held", "small", "large"])
async def test_send_nowait_reports_unsent_bytes_until_the_peer_takes_them(waiting: bytes) -> None:
    client, server = await handshake(await tcp_pair())
    await client.send_all(b"first")
    assert client.held_up_bytes == 0
    await fill(client)
    # What did not wait.
    assert 0 < client.held_up_bytes < RECORD_BYTES_MAX + 256
    held = client.held_up_bytes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, waiting)
        await wait_all_tasks_blocked(0.01)
        assert client.held_up_bytes >= max(held, len(waiting))
        nursery.start_soon(read_to_the_end, server)
        await wait_all_tasks_blocked(0.01)
        assert client.held_up_bytes == 0
        await client.aclose()
    await server.aclose()


async def fill(stream: TLSStream) -> None:
    def send() -> bool:
        # Held bytes are sent first, or they would grow.
        return stream.send_nowait(b"" if stream.held_up_bytes else bytes(RECORD_BYTES_MAX))

    assert isinstance(stream.transport_stream, TCPStream)
    await clog(stream.transport_stream, send)


async def read_to_the_end(stream: TLSStream) -> None:
    while await stream.receive_some():
        pass


async def test_bytes_before_a_fault_are_kept_when_the_alert_is_cancelled() -> None:
    client, server = await handshake(await tcp_pair())
    # The alert has to wait behind what the peer does not take.
    await fill(server)
    await client.send_all(b"good")
    await client.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.receive_some)
        await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert await server.receive_some() == b"good"
    with pytest.raises(trio.BrokenResourceError, match="TLS failed"):
        await server.receive_some()
    for stream in (client, server):
        await trio.aclose_forcefully(stream)


async def test_send_nowait_is_refused_while_a_task_sends_and_on_a_broken_stream() -> None:
    near, far = await tcp_pair()
    client, server = await handshake((near, far))

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(bytes(100_000_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            client.send_nowait(b"x")
        await trio.aclose_forcefully(server)
    with pytest.raises(trio.BrokenResourceError):
        client.send_nowait(b"x")
    await client.aclose()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="the command openssl is not installed")
async def test_renegotiation_is_refused() -> None:
    server_side = contexts(ssl.TLSVersion.TLSv1_2)[1]
    server_side.maximum_version = ssl.TLSVersion.TLSv1_2
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    command = ["openssl", "s_client", "-tls1_2", "-connect", f"127.0.0.1:{port}"]
    async with listener, trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, stdin=subprocess.PIPE, capture_stdout=True, check=False)
        process = await nursery.start(partial(run, capture_stderr=True))
        accepted = await listener.accept()
        async with TLSStream(accepted, server_side, server_side=True) as server:
            await server.do_handshake()
            await process.stdin.send_all(b"before\n")
            assert await receive_exactly(server, 7) == b"before\n"
            # A line of a single R asks for a renegotiation.
            await process.stdin.send_all(b"R\n")
            await trio.lowlevel.wait_readable(accepted.socket)

            async def receive() -> None:
                with pytest.raises(trio.BrokenResourceError, match="alert handshake failure"):
                    await server.receive_some()

            async with trio.open_nursery() as reader:
                reader.start_soon(receive)
                await wait_all_tasks_blocked(0.01)
                # The refusal goes out with it, and the client has no use for the connection any more.
                await server.send_all(b"x")


async def test_each_direction_ends_on_its_own_close_notify() -> None:
    client, server = await handshake(memory_stream_pair())
    await client.send_all(b"request")
    await client.aclose()
    assert await server.receive_some() == b"request"
    assert await server.receive_some() == b""
    assert await server.receive_some() == b""
    await server.aclose()


@pytest.mark.parametrize("version", VERSIONS)
async def test_close_notify_is_bounded_when_the_peer_does_not_read(
    version: ssl.TLSVersion, autojump_clock: trio.testing.MockClock
) -> None:
    client, server = await handshake(lockstep_stream_pair(), version)
    started = trio.current_time()
    await server.aclose()
    assert trio.current_time() - started == pytest.approx(1.0)
    await trio.aclose_forcefully(client)


async def test_a_cancelled_aclose_cuts_without_a_farewell() -> None:
    client, server = await handshake(await tcp_pair())
    await trio.aclose_forcefully(client)
    with pytest.raises(trio.BrokenResourceError, match="without a TLS close_notify"):
        await server.receive_some()
    await server.aclose()


async def test_aclose_does_not_wait_behind_a_blocked_send(autojump_clock: trio.testing.MockClock) -> None:
    client, server = await handshake(lockstep_stream_pair())

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(bytes(100_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await client.aclose()
    assert trio.current_time() == 0
    with pytest.raises(trio.BrokenResourceError):
        await receive_exactly(server, 100_001)
    await server.aclose()


async def test_nothing_can_be_sent_behind_a_cancelled_send(autojump_clock: trio.testing.MockClock) -> None:
    client, server = await handshake(lockstep_stream_pair())
    with trio.move_on_after(1) as scope:
        await client.send_all(bytes(100_000))
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"more")
    # Not even a close_notify, which no peer would read.
    await client.aclose()
    assert trio.current_time() == 1
    await trio.aclose_forcefully(server)


async def test_bytes_of_a_peer_that_takes_no_more_are_received() -> None:
    """Such as why: an answer to an upload that it does not want, the status of a command that has ended."""
    client, server = await handshake(await tcp_pair())

    async def send() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await client.send_all(bytes(100_000_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await server.send_all(b"that is enough")
        await trio.aclose_forcefully(server)
    with pytest.raises(trio.BrokenResourceError, match="an earlier send failed"):
        client.send_nowait(b"x")
    assert await client.receive_some() == b"that is enough"
    with pytest.raises(trio.BrokenResourceError, match="without a TLS close_notify"):
        await client.receive_some()
    await client.aclose()


async def test_a_cancelled_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    client, server = await handshake(memory_stream_pair())
    with trio.move_on_after(1):
        await server.receive_some()
    await client.send_all(b"late")
    with trio.CancelScope() as scope:
        scope.cancel()
        await server.receive_some()
    assert await server.receive_some() == b"late"
    await client.aclose()
    await server.aclose()


async def test_a_second_task_in_the_same_direction_is_refused() -> None:
    client, server = await handshake(lockstep_stream_pair())

    async def blocked(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(trio.ClosedResourceError):
            await call()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocked, lambda: client.send_all(bytes(100)))
        nursery.start_soon(blocked, client.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.send_all(b"x")
        with pytest.raises(trio.BusyResourceError):
            await client.wait_send_all_might_not_block()
        with pytest.raises(trio.BusyResourceError):
            await client.receive_some()
        await client.aclose()
    await trio.aclose_forcefully(server)


def post_handshake_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    client_side, server_side = contexts(ssl.TLSVersion.TLSv1_3)
    client_side.post_handshake_auth = True
    authority().issue_cert("relay.test").configure_cert(client_side)
    server_side.load_verify_locations(cadata=ca_pem())
    server_side.post_handshake_auth = True
    server_side.verify_mode = ssl.CERT_REQUIRED
    return client_side, server_side


async def post_handshake_pair(pair: tuple[AnyStream, AnyStream]) -> tuple[TLSStream, TLSStream]:
    client_side, server_side = post_handshake_contexts()
    client = TLSStream(pair[0], client_side, server_hostname="hub.test")
    server = TLSStream(pair[1], server_side, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.do_handshake)
        nursery.start_soon(server.do_handshake)
    return client, server


async def test_bytes_that_reading_makes_openssl_write_go_out_with_the_next_send() -> None:
    # A certificate request after the handshake is the one such message that Python can cause.
    client, server = await post_handshake_pair(memory_stream_pair())
    server.ssl_object.verify_client_post_handshake()
    await server.send_all(b"x")
    assert await client.receive_some() == b"x"
    assert client._held
    await client.send_all(b"y")
    assert await server.receive_some() == b"y"
    assert server.ssl_object.getpeercert() is not None
    await client.aclose()
    await server.aclose()


async def test_answers_that_went_out_count_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    client, server = await post_handshake_pair(memory_stream_pair())
    rounds = 4
    for _ in range(rounds):
        server.ssl_object.verify_client_post_handshake()
        await server.send_all(b"x")
        assert await client.receive_some() == b"x"
        answered = len(client._held)
        await client.send_all(b"y")
        assert await server.receive_some() == b"y"
        # The server's are new session tickets. One round's fit, and those of all do not.
        # ECDSA's signatures, one in each of the client's, differ by some bytes in length.
        most = max(answered, len(server._held)) + 8
        assert min(answered, len(server._held)) * rounds > most
        monkeypatch.setattr("tunnel.net.tls.ANSWERS_BYTES_MAX", most)
    await client.aclose()
    await server.aclose()


async def test_bytes_behind_the_handshake_are_kept_for_the_first_receive() -> None:
    class Late(Dribble):
        async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
            await wait_all_tasks_blocked()
            return await self.inner.receive_some(max_bytes)

    async def ask() -> None:
        await client.do_handshake()
        await client.send_all(b"early")

    near, far = memory_stream_pair()
    client_side, server_side = contexts()
    client = TLSStream(near, client_side, server_hostname="hub.test")
    server = TLSStream(Late(far, []), server_side, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await server.do_handshake()
    assert server.has_unread
    assert await server.receive_some() == b"early"
    await client.aclose()
    await server.aclose()


async def test_a_send_that_openssl_refuses_leaves_nothing_to_others() -> None:
    client, server = await handshake(memory_stream_pair())
    with pytest.raises(ssl.SSLError):
        client.ssl_object.unwrap()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    assert not _buffers.outgoing.pending
    await client.aclose()
    await trio.aclose_forcefully(server)


async def test_a_reader_never_waits_for_a_blocked_sender() -> None:
    client, server = await post_handshake_pair(lockstep_stream_pair())
    payload = bytes(range(256)) * 1000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, payload)
        await wait_all_tasks_blocked()
        server.ssl_object.verify_client_post_handshake()
        nursery.start_soon(server.send_all, b"x")
        # The server reads nothing yet: the client's sender stays blocked, its reader must not. Later the
        # server's reader meets the client's certificate and has tickets to send, while the client reads
        # nothing.
        assert await client.receive_some() == b"x"
        assert await receive_exactly(server, len(payload)) == payload
    assert server.ssl_object.getpeercert() is not None
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)


async def test_a_peer_that_causes_answers_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.net.tls.ANSWERS_BYTES_MAX", 100)
    client, server = await post_handshake_pair(memory_stream_pair())
    server.ssl_object.verify_client_post_handshake()
    await server.send_all(b"x")
    assert await client.receive_some() == b"x"
    with pytest.raises(trio.BrokenResourceError, match="answers without end"):
        await client.receive_some()
    await client.aclose()
    await server.aclose()


async def failing_handshake(
    client_side: ssl.SSLContext, server_side: ssl.SSLContext, hostname: str = "hub.test"
) -> tuple[str, str]:
    near, far = memory_stream_pair()
    streams = {
        "client": TLSStream(near, client_side, server_hostname=hostname),
        "server": TLSStream(far, server_side, server_side=True),
    }
    texts: dict[str, str] = {}

    async def run(name: str, stream: TLSStream) -> None:
        try:
            await stream.do_handshake()
            await stream.receive_some()
        except trio.BrokenResourceError as exc:
            texts[name] = str(exc)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        for name, stream in streams.items():
            nursery.start_soon(run, name, stream)
    return texts["client"], texts["server"]


async def test_an_unknown_ca_is_named_on_both_sides() -> None:
    import trustme

    stranger = client_context(trustme.CA().cert_pem.bytes().decode())
    client, server = await failing_handshake(stranger, contexts()[1])
    assert client.startswith("the peer's certificate is not accepted: unable to get local issuer")
    assert "alert unknown ca" in server


async def test_a_wrong_host_name_is_named() -> None:
    client, _ = await failing_handshake(*contexts(), hostname="other.test")
    assert client.startswith("the peer's certificate is not accepted: Hostname mismatch")
    assert "other.test" in client


async def test_an_old_version_is_refused() -> None:
    client_side, server_side = contexts()
    client_side.minimum_version = ssl.TLSVersion.TLSv1_3
    server_side.maximum_version = ssl.TLSVersion.TLSv1_2
    client, server = await failing_handshake(client_side, server_side)
    assert "alert protocol version" in client
    assert "unsupported protocol" in server


async def test_a_peer_that_speaks_no_tls_is_refused() -> None:
    near, far = memory_stream_pair()
    await far.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    client = TLSStream(near, contexts()[0], server_hostname="hub.test")
    with pytest.raises(HandshakeFailed, match=r"TLS failed: (wrong version number|record layer failure)"):
        await client.do_handshake()
    await client.aclose()


async def test_a_failed_handshake_leaves_nothing_to_a_garbage_collection() -> None:
    near, far = memory_stream_pair()
    await far.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    server = TLSStream(near, contexts()[1], server_side=True)
    gone = weakref.ref(server)
    gc.disable()
    try:
        with suppress(HandshakeFailed):
            await server.do_handshake()
        await server.aclose()
        # Until its next step a task may hold what it has last called with (Python 3.13).
        await trio.lowlevel.checkpoint()
        del server
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("after", [0, 1])
async def test_a_peer_that_leaves_during_the_handshake_is_refused(after: int) -> None:
    near, far = memory_stream_pair()
    client = TLSStream(near, contexts()[0], server_hostname="hub.test")
    if after:
        await far.send_all(b"\x16\x03\x03")
    await far.send_eof()
    with pytest.raises(HandshakeFailed, match="the peer closed the connection during the TLS handshake"):
        await client.do_handshake()
    await client.aclose()
    await far.aclose()


async def test_a_cancelled_handshake_leaves_a_broken_stream(autojump_clock: trio.testing.MockClock) -> None:
    near, far = memory_stream_pair()
    client = TLSStream(near, contexts()[0], server_hostname="hub.test")
    with trio.move_on_after(1):
        await client.do_handshake()
    with pytest.raises(trio.BrokenResourceError):
        await client.send_all(b"x")
    await client.aclose()
    await far.aclose()


async def readable(stream: TLSStream) -> None:
    await trio.lowlevel.wait_readable(stream.transport_stream.socket)  # type: ignore[attr-defined]


@pytest.mark.parametrize("version", VERSIONS)
async def test_receive_nowait_returns_whole_records_and_distinguishes_a_wait_from_the_end(
    version: ssl.TLSVersion,
) -> None:
    near, far = await tcp_pair()
    client, server = await handshake((near, far), version)
    # The server's session tickets are no data, and so are what there is a wait behind.
    await server.send_all(b"a")
    await readable(client)
    assert client.receive_nowait() == b"a"
    assert client.receive_nowait() is None
    record = server._encrypt(b"torn")
    await far.send_all(record[:-1])
    await readable(client)
    assert client.receive_nowait() is None
    await far.send_all(record[-1:] + server._encrypt(b" and whole"))
    await readable(client)
    assert client.receive_nowait() == b"torn and whole"
    await server.aclose()
    await readable(client)
    assert client.receive_nowait() == b""
    assert client.receive_nowait() == b""
    client.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        client.receive_nowait()


async def test_receive_nowait_reads_less_after_very_many_small_records() -> None:
    near, far = await tcp_pair()
    client, server = await handshake((near, far))
    records = 20_000
    ciphertext = b"".join(server._encrypt(b"a") for _ in range(records))
    await far.send_all(ciphertext[: 22 * 1000])
    await readable(client)
    # This read cannot know.
    sizes = [len(client.receive_nowait() or b"")]
    assert sizes[0] > CROWDED_BYTES_MAX // 20
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.send_all, ciphertext[22 * 1000 :])
        while sum(sizes) < records:
            await readable(client)
            sizes.append(len(client.receive_nowait() or b""))
        nursery.start_soon(far.send_all, server._encrypt(bytes(SEND_BYTES_MAX)))
        received = large = 0
        while received < SEND_BYTES_MAX:
            await readable(client)
            data = client.receive_nowait() or b""
            received += len(data)
            large = max(large, len(data))
    # A record of one byte takes more than 20.
    assert max(sizes[1:]) <= CROWDED_BYTES_MAX // 20
    assert large > CROWDED_BYTES_MAX
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)


async def test_bytes_left_by_a_receive_come_before_later_ones() -> None:
    client, server = await handshake(await tcp_pair())
    await client.send_all(b"abcd")
    assert await server.receive_some(2) == b"ab"
    await client.send_all(b"ef")
    await readable(server)
    assert server.receive_nowait() == b"cd"
    assert server.receive_nowait() == b"ef"
    await client.aclose()
    await server.aclose()


async def test_receive_nowait_raises_on_a_cut_and_on_a_corrupted_record() -> None:
    near, far = await tcp_pair()
    client, server = await handshake((near, far))
    await far.send_all(server._encrypt(b"before") + b"\x17\x03\x03\x00\x20" + bytes(32))
    await readable(client)
    assert client.receive_nowait() == b"before"
    with pytest.raises(trio.BrokenResourceError, match=r"bad record mac|record layer failure"):
        client.receive_nowait()
    with pytest.raises(trio.BrokenResourceError, match="alert bad record mac"):
        await server.receive_some()
    await client.aclose()
    await server.aclose()

    client, server = await handshake(await tcp_pair())
    server.close_nowait()
    await readable(client)
    with pytest.raises(trio.BrokenResourceError, match="without a TLS close_notify"):
        client.receive_nowait()
    client.close_nowait()
    with pytest.raises(trio.ClosedResourceError):
        await client.send_all(b"x")


async def test_a_reader_gets_a_fault_while_a_sender_waits() -> None:
    near, far = await tcp_pair()
    client, server = await handshake((near, far))

    async def send() -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await client.send_all(bytes(100_000_000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        await wait_all_tasks_blocked()
        await far.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(trio.BrokenResourceError, match=r"bad record mac|record layer failure"):
            await client.receive_some()
        await client.aclose()
    await server.aclose()


async def test_a_wait_for_a_writable_stream_excludes_other_senders_and_breaks_nothing() -> None:
    client, server = await handshake(await tcp_pair())
    await fill(client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.wait_send_all_might_not_block)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await client.send_all(b"x")
        nursery.cancel_scope.cancel()
    assert not client.send_nowait(b"x")
    await trio.aclose_forcefully(client)
    await server.aclose()


async def test_receive_nowait_bounds_the_answers_that_reading_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.net.tls.ANSWERS_BYTES_MAX", 100)
    client, server = await post_handshake_pair(await tcp_pair())
    server.ssl_object.verify_client_post_handshake()
    await server.send_all(b"x")
    await readable(client)
    assert client.receive_nowait() == b"x"
    with pytest.raises(trio.BrokenResourceError, match="answers without end"):
        client.receive_nowait()
    await client.aclose()
    await server.aclose()


async def test_receive_nowait_is_refused_while_a_task_receives() -> None:
    client, server = await handshake(await tcp_pair())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            client.receive_nowait()
        await server.send_all(b"x")
    await client.aclose()
    await server.aclose()


async def test_streams_that_share_their_buffers_do_not_meet_in_them() -> None:
    async def talk(number: int) -> None:
        # Each flight and each record comes in many pieces, with those of the others in between.
        ends = [Dribble(end, [number, 7, 100]) for end in memory_stream_pair()]
        client, server = await handshake((ends[0], ends[1]))
        for size in (1, 5000):
            sent = bytes([number]) * size
            await client.send_all(sent)
            assert await receive_exactly(server, size) == sent
            await server.send_all(sent)
            assert await receive_exactly(client, size) == sent
        await client.aclose()
        assert await server.receive_some() == b""
        await server.aclose()

    async with trio.open_nursery() as nursery:
        for number in range(1, 6):
            nursery.start_soon(talk, number)


async def test_a_stream_of_another_thread_has_other_buffers() -> None:
    client, server = await handshake(memory_stream_pair())
    theirs, _ = await trio.to_thread.run_sync(trio.run, handshake, memory_stream_pair())
    assert theirs._incoming is not client._incoming
    assert theirs._outgoing is not client._outgoing
    assert server._incoming is client._incoming
    await client.aclose()
    await server.aclose()


class Leftovers(trio.abc.Instrument):
    """After which steps of a task there was something in the buffers, for the next one to find."""

    def __init__(self) -> None:
        self.behind: list[str] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if _buffers.incoming.pending or _buffers.outgoing.pending:
            self.behind.append(task.name)
            _buffers.incoming.read()
            _buffers.outgoing.read()


GONE = (trio.BrokenResourceError, trio.ClosedResourceError)


class Cable:
    """A connection whose ciphertext is delivered by hand, and what its ends are to receive."""

    def __init__(self, near: AnyStream, far: AnyStream, client: TLSStream, server: TLSStream) -> None:
        self.ends = client, server
        self.sources = near.receive_stream, far.receive_stream  # type: ignore[attr-defined]
        self.waiting = [bytearray(), bytearray()]
        self.expected = [bytearray(), bytearray()]
        self.received = [bytearray(), bytearray()]
        self.good = True

    @classmethod
    async def connected(cls, version: ssl.TLSVersion | None) -> Cable:
        near, far = memory_stream_pair()
        if version is None:
            client, server = await post_handshake_pair((near, far))
        else:
            client, server = await handshake((near, far), version)
        return cls(near, far, client, server)

    def send(self, to: int, size: int) -> None:
        try:
            self.waiting[to] += self.ends[1 - to]._encrypt(bytes([size % 251 + 1]) * size)
            self.expected[to] += bytes([size % 251 + 1]) * size
        except trio.BrokenResourceError:
            assert not self.good

    def deliver(self, to: int, size: int) -> None:
        if data := bytes(self.waiting[to][:size]):
            with suppress(trio.ClosedResourceError):
                self.sources[to].put_data(data)
        del self.waiting[to][:size]

    async def receive(self, to: int) -> None:
        """Receive the delivered bytes, and be cancelled in the wait for more."""
        try:
            while data := await self.ends[to].receive_some():
                self.received[to] += data
        except GONE:
            assert not self.good

    def spoil(self, to: int, junk: bytes) -> None:
        self.good = False
        self.waiting[to][:0] = junk

    async def act(self, action: str, to: int, size: int) -> None:
        match action:
            case "send":
                self.send(to, size)
            case "deliver":
                self.deliver(to, size)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.receive, to)
                    await wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
            case "ask for a certificate":
                with suppress(ssl.SSLError):
                    self.ends[1].ssl_object.verify_client_post_handshake()
            case "flip":
                if self.waiting[to]:
                    self.good = False
                    self.waiting[to][size % len(self.waiting[to])] ^= 1
            case "repeat":
                self.spoil(to, bytes(self.waiting[to]))
            case "no record":
                self.spoil(to, b"\x17\x03\x03\xff\xff" + bytes(size))
            case "an empty record":
                self.spoil(to, b"\x17\x03\x03\x00\x00")
            case "a hello":
                self.spoil(to, b"\x80\x2e\x01\x03\x01" + bytes(size))
            case "say the end":
                self.good = False
                with suppress(ssl.SSLError):
                    self.ends[1 - to].ssl_object.unwrap()
                self.waiting[to] += _buffers.outgoing.read()
            case "break off":
                self.good = False
                with suppress(*GONE), trio.CancelScope() as scope:
                    scope.cancel()
                    await self.ends[to].send_all(bytes(size))
            case "close":
                self.good = False
                await self.ends[to].aclose()
            case "cut":
                self.good = False
                await trio.aclose_forcefully(self.ends[to])


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(
                [
                    *["send", "deliver"] * 5,
                    *["ask for a certificate", "flip", "repeat", "no record", "an empty record"],
                    *["a hello", "say the end", "break off", "close", "cut"],
                ]
            ),
            st.integers(0, 1),
            st.sampled_from([0, 1, 4, 6, 30, 1000, RECORD_BYTES_MAX, 50_000]),
        ),
        min_size=5,
        max_size=40,
    )
)
async def test_a_stream_that_ends_in_any_way_leaves_nothing_to_another(
    steps: list[tuple[int, str, int, int]],
) -> None:
    leftovers = Leftovers()
    trio.lowlevel.add_instrument(leftovers)
    cables = [await Cable.connected(version) for version in (*VERSIONS, None, None)]
    for number, action, to, size in steps:
        await cables[number].act(action, to, size)
        assert leftovers.behind == [], action
    for cable in cables:
        for to in (0, 1):
            await cable.act("deliver", to, 10**6)
            assert cable.expected[to].startswith(cable.received[to])
            assert not cable.good or cable.received[to] == cable.expected[to]
        for end in cable.ends:
            await trio.aclose_forcefully(end)
    trio.lowlevel.remove_instrument(leftovers)
    assert leftovers.behind == []


class Failing:
    """OpenSSL without memory for its return value."""

    def __init__(self, inner: ssl.SSLObject, *, reads: bool = False) -> None:
        self.inner = inner
        self.reads = reads

    def do_handshake(self) -> None:
        with suppress(ssl.SSLWantReadError):
            self.inner.do_handshake()
        raise MemoryError

    def read(self, size: int) -> bytes:
        if self.reads:
            # And as it never is.
            return b"of another record"
        raise MemoryError

    def write(self, data: bytes | memoryview) -> int:
        self.inner.write(data)
        raise MemoryError

    def unwrap(self) -> None:
        with suppress(ssl.SSLError):
            self.inner.unwrap()
        raise MemoryError


async def test_a_call_that_fails_midway_breaks_its_own_stream_and_no_other() -> None:
    client, server = await handshake(memory_stream_pair())
    other = await handshake(memory_stream_pair())

    async def other_streams_are_unharmed() -> None:
        assert not _buffers.incoming.pending
        assert not _buffers.outgoing.pending
        for sender, receiver in (other, other[::-1]):
            await sender.send_all(b"x")
            assert await receiver.receive_some() == b"x"

    new = TLSStream(memory_stream_pair()[0], contexts()[0], server_hostname="hub.test")
    new._ssl = Failing(new._ssl)  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        await new.do_handshake()
    await other_streams_are_unharmed()
    await client.send_all(b"lost")
    server._ssl = Failing(server._ssl)  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        await server.receive_some()
    await other_streams_are_unharmed()
    with pytest.raises(trio.BrokenResourceError, match="a fault of ours"):
        await server.receive_some()
    client._ssl = Failing(client._ssl)  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        client.send_nowait(b"x")
    await other_streams_are_unharmed()
    with pytest.raises(trio.BrokenResourceError, match="a fault of ours"):
        client.send_nowait(b"x")

    sender, receiver = await handshake(memory_stream_pair())
    await sender.send_all(b"x")
    receiver._ssl = Failing(receiver._ssl, reads=True)  # type: ignore[assignment]
    assert await receiver.receive_some()
    await other_streams_are_unharmed()
    with pytest.raises(trio.BrokenResourceError, match="a fault of ours"):
        await receiver.receive_some()
    sender._ssl = Failing(sender._ssl)  # type: ignore[assignment]
    with pytest.raises(MemoryError):
        await sender.aclose()
    await other_streams_are_unharmed()
    with pytest.raises(trio.ClosedResourceError):
        await sender.transport_stream.send_all(b"x")
    for stream in (new, client, server, receiver, *other):
        await trio.aclose_forcefully(stream)


async def test_a_stream_is_of_no_use_in_another_thread() -> None:
    near, far = memory_stream_pair()
    stream = await trio.to_thread.run_sync(lambda: TLSStream(near, contexts()[0], server_hostname="hub.test"))
    with pytest.raises(AssertionError, match="thread"):
        await stream.do_handshake()
    await trio.aclose_forcefully(stream)
    await far.aclose()
