"""Which frames gather into one message, and which are sent at the end of a pass, beside the writer."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.tunnel.pairs import Pair, open_pair, read_all
from tests.tunnel.protocol.joined import frames_of
from tests.tunnel.resumable_pair import ResumablePair, open_resumable_pair
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import Session, SessionClosed, Settings, Stream
from tunnel.driver import QUEUE_HIGH_BYTES
from tunnel.link import FRAMES_AT_ONCE, FRAMES_PER_LOOK, FRAMES_PER_WAIT, STEP_S, Link
from tunnel.net.fairness import FRAMES_PERIOD_S, SHARED_FRAMES, fairness
from tunnel.net.readiness import Readiness
from tunnel.protocol import frames
from tunnel.protocol.congestion import MESSAGE_FIRST_BYTES
from tunnel.protocol.connection import Connection
from tunnel.protocol.frames import FrameType
from tunnel.protocol.ledger import ACK_ALONG_S, LEDGER_RESERVE_BYTES
from tunnel.refusals import FAREWELL_S
from tunnel.websocket.transport import MemoryTransport, TransportClosed

# The most calls of one pass.
CALLS_MAX = 3
# What one reader takes in without a wait, where no other does.
AT_ONCE = FRAMES_AT_ONCE + SHARED_FRAMES


class Passes:
    """Makes passes of a Readiness in which given calls are made."""

    def __init__(self, readiness: Readiness) -> None:
        self.readiness = readiness
        self._calls: list[Callable[[], None]] = []
        self._pairs = [socket.socketpair() for _ in range(CALLS_MAX)]
        for near, _ in self._pairs:
            near.setblocking(False)
            readiness.watch(near.fileno(), lambda near=near: self._call(near))  # type: ignore[misc]

    def _call(self, near: socket.socket) -> None:
        near.recv(1)
        self._calls.pop(0)()

    def begin(self, *calls: Callable[[], None]) -> None:
        """Have one pass make these calls, as soon as it is its task's turn."""
        assert len(calls) <= CALLS_MAX
        self._calls += calls
        for (_, far), _call in zip(self._pairs, calls, strict=False):
            far.send(b"x")

    async def make(self, *calls: Callable[[], None]) -> None:
        """Make one pass, and let everything happen that comes of it."""
        self.begin(*calls)
        await wait_all_tasks_blocked()
        assert not self._calls

    def close(self) -> None:
        for near, far in self._pairs:
            near.close()
            far.close()


@asynccontextmanager
async def passing(session: Session) -> AsyncIterator[Passes]:
    """Make a session send queued frames at the end of a pass."""
    readiness = Readiness()
    passes = Passes(readiness)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.run)
        session.flush_after(readiness)
        await wait_all_tasks_blocked()
        try:
            yield passes
        finally:
            nursery.cancel_scope.cancel()
            passes.close()


def opens(message: bytes) -> int:
    types = [frame_type for frame_type, *_ in frames_of(message)]
    assert set(types) <= {FrameType.OPEN}
    return len(types)


def ask(pair: Pair) -> None:
    pair.open_stream(b"GET", eof=True)


# --- what the reader takes at once ---


async def turns_while(done: Callable[[], bool]) -> int:
    """How often a task that always has something to do has its turn before that."""
    count = 0
    while not done():
        await trio.lowlevel.checkpoint()
        count += 1
    return count


async def turns_during(message: bytes) -> int:
    """How often another task has its turn before the listener has taken all of a dialer's message."""
    async with open_pair() as pair:
        await wait_all_tasks_blocked()
        await pair.dialer._life.transport.send(message + frames.goaway(0, 1000, 0, 0, "behind it"))
        return await turns_while(lambda: pair.listener.peer_going_away is not None)


async def test_other_tasks_run_in_the_middle_of_very_many_frames(
    autojump_clock: trio.testing.MockClock,
) -> None:
    unknown = frames.header(0x7F, 0, 0, 0)
    # trio chooses the order of tasks in a pass.
    assert await turns_during(unknown * (FRAMES_AT_ONCE // 2)) <= 1
    assert 5 <= await turns_during(unknown * (AT_ONCE + 5 * FRAMES_PER_WAIT)) <= 7


async def test_other_tasks_run_between_frames_whose_handlers_take_long(
    mock_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        ends = [await pair.streams() for _ in range(6 * FRAMES_PER_LOOK)]
        await wait_all_tasks_blocked()
        for opened, accepted in ends:
            opened.raw.when_input(lambda: mock_clock.jump(2 * STEP_S / FRAMES_PER_LOOK))
            accepted.send_nowait(b"x")
        assert await turns_while(lambda: all(opened.raw.bytes_received for opened, _ in ends)) >= 8


async def test_the_budget_of_frames_refills_after_a_while(
    autojump_clock: trio.testing.MockClock,
) -> None:
    unknown = frames.header(0x7F, 0, 0, 0)
    async with open_pair() as pair:
        await wait_all_tasks_blocked()
        await pair.dialer._life.transport.send(unknown * 2 * AT_ONCE)
        await wait_all_tasks_blocked()
        await trio.sleep(FRAMES_PERIOD_S)
        await pair.dialer._life.transport.send(unknown * (AT_ONCE - 1) + frames.goaway(0, 1000, 0, 0, ""))
        assert await turns_while(lambda: pair.listener.peer_going_away is not None) <= 1


async def test_many_messages_share_one_budget_of_frames(
    autojump_clock: trio.testing.MockClock,
) -> None:
    few, messages = frames.header(0x7F, 0, 0, 0) * FRAMES_AT_ONCE, 200
    async with open_pair(messages_max=messages) as pair:
        await wait_all_tasks_blocked()
        for _ in range(messages - 1):
            assert pair.dialer._life.transport.send_nowait(few)
        assert pair.dialer._life.transport.send_nowait(frames.goaway(0, 1000, 0, 0, "behind them"))
        count = await turns_while(lambda: pair.listener.peer_going_away is not None)
        # To receive a message is a turn of others by itself, over this transport.
        assert count >= messages + (messages * FRAMES_AT_ONCE - AT_ONCE) // FRAMES_PER_WAIT - 2


async def test_a_peer_with_few_frames_does_not_wait_behind_flooding_ones(
    autojump_clock: trio.testing.MockClock,
) -> None:
    unknown = frames.header(0x7F, 0, 0, 0)
    async with AsyncExitStack() as stack:
        floods = [await stack.enter_async_context(open_pair()) for _ in range(8)]
        honest = await stack.enter_async_context(open_pair())
        await wait_all_tasks_blocked()
        for pair in floods:
            await pair.dialer._life.transport.send(unknown * 4 * FRAMES_PER_WAIT)
        # Nothing is left of what all have in common.
        await turns_while(lambda: fairness().frames_left(trio.current_time()) <= 0)
        few = unknown * (FRAMES_AT_ONCE // 2) + frames.goaway(0, 1000, 0, 0, "behind them")
        await honest.dialer._life.transport.send(few)
        assert await turns_while(lambda: honest.listener.peer_going_away is not None) <= 2


async def flood(pair: Pair, message: bytes, count: int) -> None:
    for _ in range(count):
        await pair.dialer._life.transport.send(message)


@pytest.mark.parametrize("frames_each", [1, 128, 10 * FRAMES_PER_WAIT])
async def test_one_session_over_the_frame_budget_is_served_per_pass(
    frames_each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: Counter[int] = Counter()
    passes = 0
    receive = Connection.receive_message

    def counting(self: Connection, message: bytes, now: float, *most: int) -> None:
        receive(self, message, now, *most)
        taken[passes] += self.feed.frames_taken

    sessions, each = 16, 10 * FRAMES_PER_WAIT
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(open_pair()) for _ in range(sessions)]
        await wait_all_tasks_blocked()
        monkeypatch.setattr(Connection, "receive_message", counting)
        message = frames.header(0x7F, 0, 0, 0) * frames_each
        async with trio.open_nursery() as nursery:
            for pair in pairs:
                nursery.start_soon(flood, pair, message, each // frames_each)
            while taken.total() < sessions * each:
                await trio.lowlevel.checkpoint()
                passes += 1
    # Where in a pass the counting task has its own turn is trio's choice, so that it sees parts of two.
    assert max(taken.values()) <= 2 * (FRAMES_PER_WAIT + SHARED_FRAMES + sessions * FRAMES_AT_ONCE)


async def test_a_session_has_as_many_passes_as_any_other(autojump_clock: trio.testing.MockClock) -> None:
    async def agent(name: int) -> None:
        """Has always one more long head."""
        while True:
            await fairness().wait_alone(name)

    sessions, agents, each = 8, 8, 4
    async with AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(open_pair()) for _ in range(sessions)]
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            for name in range(agents):
                nursery.start_soon(agent, name)
            for pair in pairs:
                message = frames.header(0x7F, 0, 0, 0) * (AT_ONCE + each * FRAMES_PER_WAIT)
                await pair.dialer._life.transport.send(message + frames.goaway(0, 1000, 0, 0, "behind it"))
            count = await turns_while(lambda: all(pair.listener.peer_going_away for pair in pairs))
            nursery.cancel_scope.cancel()
        assert count <= (each + 2) * (sessions + agents)


async def test_a_protocol_error_behind_very_many_frames_ends_the_session() -> None:
    async with open_pair() as pair:
        await wait_all_tasks_blocked()
        wrong = frames.header(0x7F, frames.CRITICAL, 0, 0)
        await pair.dialer._life.transport.send(frames.header(0x7F, 0, 0, 0) * 3 * FRAMES_PER_WAIT + wrong)
        assert "critical and unknown" in await pair.listener.wait_closed()


class Opened:
    """Takes the streams that the dialer opens in one message; behind the first of them it does something."""

    def __init__(self, pair: Pair | ResumablePair, then: Callable[[], None]) -> None:
        self.pair = pair
        self.then = then
        self.heads: list[bytes] = []
        pair.listener.on_stream(self.take)

    def take(self, stream: Stream) -> None:
        self.heads.append(stream.head)
        if len(self.heads) == 1:
            self.then()

    async def open(self, count: int) -> None:
        context = self.pair.dialer.add_context(1, b"token")
        await wait_all_tasks_blocked()
        for number in range(count):
            self.pair.dialer.open_stream(b"%d" % number, context=context, eof=True)
        await wait_all_tasks_blocked()


async def test_the_end_of_a_session_in_the_middle_of_very_many_frames_is_the_end() -> None:
    async with open_pair() as pair:
        opened = Opened(pair, lambda: pair.listener.end(1000, "enough"))
        await opened.open(2 * FRAMES_PER_WAIT)
        assert pair.dialer.closed
        assert len(opened.heads) <= AT_ONCE
        assert pair.listener.memory.used_bytes == 0


async def test_a_loss_in_the_middle_of_very_many_frames_loses_none_and_doubles_none() -> None:
    async with open_resumable_pair() as pair:
        life = pair.listener._life

        def lose() -> None:
            # As a writer finds it out.
            assert life.driver.link is not None
            life.lose(life.driver.link, None, "cut")
            pair.cut()

        opened = Opened(pair, lose)
        await opened.open(3 * FRAMES_PER_WAIT)
        assert pair.listener.detached
        assert len(opened.heads) <= AT_ONCE
        await pair.redial()
        assert opened.heads == [b"%d" % number for number in range(3 * FRAMES_PER_WAIT)]


# --- what the writer gathers ---


async def test_many_streams_frames_are_one_message(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        await trio.sleep(1)
        before = len(pair.wire.sent)
        for _ in range(100):
            pair.open_stream(b"GET / HTTP/1.1", eof=True)
        await wait_all_tasks_blocked()
        (message,) = pair.wire.sent[before:]
        assert [frame_type for frame_type, *_ in frames_of(message)] == [FrameType.OPEN] * 100


async def test_a_head_its_body_and_their_end_are_one_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        await trio.sleep(1)
        messages = 0
        for _ in range(20):
            pair.dialer.open_stream(b"GET", context=pair.dialer.add_context(1, b"x"), eof=True)
            stream = await accept(pair.listener)
            before = len(pair.wire.sent)
            await stream.send_head(b"200")
            await stream.send_all(b"body")
            await stream.send_eof()
            await wait_all_tasks_blocked()
            sent = pair.wire.sent[before:]
            messages += len(sent)
            said = [(kind, flags) for kind, flags, *_ in frames_of(b"".join(sent)) if kind != FrameType.ACK]
            head, *_, last = said
            assert (head, last) == ((FrameType.HEAD, 0), (FrameType.DATA, frames.FIN))
        # trio runs the tasks of a pass in either order, so one of them may come a pass too late.
        assert messages < 20 * 1.5


async def test_frames_gather_again_after_a_time_when_none_did(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        pair.dialer.on_stream(lambda stream: stream.send_answer_nowait(b"200", b"whole", eof=True))
        for _ in range(30):
            asking = pair.open_stream(b"GET", eof=True)
            assert await asking.receive_head() == b"200"
            await asking.aclose()
        messages = []
        for _ in range(21):
            before = len(pair.wire.sent)
            for _ in range(3):
                pair.open_stream(b"GET", eof=True)
                await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked()
            messages.append(len(pair.wire.sent) - before)
        # trio runs the tasks of a pass in either order, so one of them may come a pass too late.
        assert sum(messages[1:]) / 20 < 2 < messages[0]


async def test_a_full_queue_is_sent_without_waiting_for_more(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []

    async def gather(link: Link) -> bool:
        waits.append(link)
        return True

    monkeypatch.setattr(Link, "_gather", gather)
    async with open_pair(Settings(initial_window=2**20)) as pair:
        stream, _ = await pair.streams()
        for size, waited in ((1000, 1), (QUEUE_HIGH_BYTES, 0), (1000, 1)):
            await wait_all_tasks_blocked()
            waits.clear()
            stream.send_nowait(bytes(size))
            stream.send_nowait(b"and more")
            await wait_all_tasks_blocked()
            assert len(waits) == waited


# --- at the end of a pass ---


async def test_frames_queued_in_a_pass_are_sent_at_its_end_as_one_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair, passing(pair.listener) as passes:
        await trio.sleep(1)
        sent = pair.wire.sent
        before = len(sent)
        at_end: list[list[bytes]] = []

        def last() -> None:
            ask(pair)
            assert len(sent) == before
            # It is called behind what the session has asked for.
            assert passes.readiness.at_end(lambda: at_end.append(sent[before:]))

        await passes.make(lambda: ask(pair), lambda: ask(pair), last)
        assert [opens(message) for message in at_end[0]] == [3]
        assert len(sent) == before + 1
        await passes.make(lambda: ask(pair))
        ask(pair)
        await wait_all_tasks_blocked()
        assert [opens(message) for message in sent[before:]] == [3, 1, 1]
        for _ in range(5):
            (await accept(pair.dialer)).close_nowait()


async def test_all_frames_of_a_pass_are_sent_at_once(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair, passing(pair.listener) as passes:
        context = pair.dialer.add_context(1, b"x")
        asking = [TrioStream(pair.dialer.open_stream(b"GET", context=context, eof=True)) for _ in range(2)]
        answering = [await accept(pair.listener) for _ in asking]
        # Until nothing is left to acknowledge.
        await trio.sleep(2)
        await wait_all_tasks_blocked()
        sent = pair.wire.sent
        out: list[int] = []

        async def said_in(call: Callable[[], None]) -> tuple[int, int]:
            """How many messages are out behind that call, and behind its pass."""
            before = len(sent)
            await passes.make(lambda: call() or out.append(len(sent) - before))
            return out.pop(), len(sent) - before

        def begin() -> None:
            # Where more may follow in the same call, it waits for that.
            answering[0].send_answer_nowait(b"200", b"one ")
            answering[0].send_nowait(b"two")

        assert await said_in(begin) == (0, 1)
        assert await said_in(lambda: answering[1].send_answer_nowait(b"200", b"all", eof=True)) == (1, 1)
        assert await said_in(lambda: ask(pair)) == (1, 1)
        assert await said_in(lambda: pair.open_stream(b"PUT") and None) == (0, 1)
        for each in (*asking, *answering):
            each.close_nowait()


async def test_outside_of_a_pass_it_is_the_writers(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair, passing(pair.listener):
        await trio.sleep(1)
        before = len(pair.wire.sent)
        ask(pair)
        assert len(pair.wire.sent) == before
        await wait_all_tasks_blocked()
        assert [opens(message) for message in pair.wire.sent[before:]] == [1]


async def test_the_writer_finishes_an_unsent_message_before_any_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair, passing(pair.listener) as passes:
        await trio.sleep(1)
        wire = pair.wire
        begun: list[bytes] = []
        go_on = trio.Event()

        def begin(message: bytes) -> bool:
            begun.append(message)
            return False

        async def finish() -> None:
            await go_on.wait()
            await wire.inner.send(begun[-1])

        wire.send_nowait = begin  # type: ignore[method-assign]
        wire.finish = finish  # type: ignore[method-assign]
        before = len(wire.sent)
        await passes.make(lambda: ask(pair))
        # Neither by another pass nor by the writer is anything sent meanwhile.
        await passes.make(lambda: ask(pair), lambda: ask(pair))
        ask(pair)
        await wait_all_tasks_blocked()
        assert [opens(message) for message in begun] == [1]
        assert wire.sent[before:] == []
        go_on.set()
        await wait_all_tasks_blocked()
        assert [opens(message) for message in wire.sent[before:]] == [3]
        for _ in range(4):
            (await accept(pair.dialer)).close_nowait()


async def test_frames_that_woke_the_writer_are_left_to_it(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair, passing(pair.listener) as passes:
        await trio.sleep(1)
        before = len(pair.wire.sent)

        def announce() -> None:
            pair.listener.add_context(2, b"another")
            # The writer is on its way, so the end of this pass is too early.
            assert passes.readiness.at_end(lambda: seen.append(len(pair.wire.sent)))

        seen: list[int] = []
        await passes.make(lambda: ask(pair), announce)
        assert seen == [before]
        (message,) = pair.wire.sent[before:]
        assert [kind for kind, *_ in frames_of(message)] == [FrameType.CONTEXT, FrameType.OPEN]


async def test_more_than_a_message_holds_goes_on_behind_it(autojump_clock: trio.testing.MockClock) -> None:
    data = bytes(MESSAGE_FIRST_BYTES)
    async with open_pair() as pair, passing(pair.listener) as passes:
        opened = [await pair.streams() for _ in range(2)]
        await wait_all_tasks_blocked()
        wire, out = pair.wire, bytearray()

        def take(message: bytes) -> bool:
            out.extend(message)
            return True

        async def take_all(message: bytes) -> None:
            out.extend(message)

        # The peer hears nothing, and so says nothing that could set it going.
        wire.send_nowait, wire.send = take, take_all  # type: ignore[method-assign]
        await passes.make(*[lambda ends=ends: ends[0].send_nowait(data) and None for ends in opened])
        assert len(out) > 2 * len(data)


async def test_a_transport_that_is_gone_is_found_by_the_writer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair, passing(pair.listener) as passes:
        await trio.sleep(1)

        def cut_and_ask() -> None:
            pair.cut()
            ask(pair)

        await passes.make(cut_and_ask)
        assert "tunnel lost" in await pair.listener.wait_closed()


@pytest.mark.parametrize("left_over", [False, True])
async def test_frames_that_a_pass_sent_into_a_dead_transport_come_by_the_next_one(
    autojump_clock: trio.testing.MockClock, left_over: bool
) -> None:
    async with open_resumable_pair() as pair, passing(pair.listener) as passes:
        opened, accepted = await pair.streams()
        # Either the kernel takes it, and it is lost there; or not even that.
        pair.here.stuck = left_over
        if not left_over:
            pair.here.send_nowait = lambda _: True  # type: ignore[method-assign]
        await passes.make(lambda: opened.send_nowait(b"one ") and None)
        await passes.make(lambda: opened.send_nowait(b"two ") and None)
        inner = pair.here.inner
        assert isinstance(inner, MemoryTransport)
        inner.cut()
        await wait_all_tasks_blocked()
        assert pair.listener.detached
        # While there is no transport it only waits.
        await passes.make(lambda: opened.send_nowait(b"three", eof=True) and None)
        await pair.redial()
        assert not pair.listener.detached
        assert await read_all(accepted) == b"one two three"
        await passes.make(lambda: accepted.close_nowait())


async def test_a_message_of_which_a_rest_is_left_is_given_up_with_its_transport(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_resumable_pair() as pair, passing(pair.listener) as passes:
        opened, accepted = await pair.streams()
        pair.here.stuck = True
        old = pair.here
        await passes.make(lambda: opened.send_nowait(b"whole", eof=True) and None)
        # The listener still has the old transport, and its writer is in the middle of a send.
        pair.there.unplugged = True
        pair.there.break_here()
        await wait_all_tasks_blocked()
        assert not pair.listener.detached
        await pair.redial()
        assert old.closed_with is not None
        assert await read_all(accepted) == b"whole"


async def test_the_end_of_a_session_may_come_in_a_pass(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair, passing(pair.listener) as passes:
        opened, _ = await pair.streams()

        def send_and_end() -> None:
            opened.send_nowait(b"last")
            pair.listener.end(1000, "enough")

        await passes.make(send_and_end)
        assert "enough" in await pair.dialer.wait_closed()


async def test_a_stream_whose_opening_ends_the_session_is_not_opened(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair, passing(pair.listener) as passes:
        _, accepted = await pair.streams()
        await accepted.send_head(b"200")
        # An acknowledgement may go along with the next message, which so looks at what the peer acknowledges.
        await trio.sleep(2 * ACK_ALONG_S)
        pair.listener._connection.sent._beyond_bytes = LEDGER_RESERVE_BYTES

        def open_one_more() -> None:
            with pytest.raises(SessionClosed, match="acknowledges nothing"):
                ask(pair)

        await passes.make(open_one_more)
        with pytest.raises(SessionClosed):
            await accept(pair.dialer)


async def test_a_bug_ends_its_session_and_not_the_task_that_runs_the_pass(
    autojump_clock: trio.testing.MockClock,
) -> None:
    made: list[str] = []

    async def use_and_fail() -> None:
        async with open_pair() as pair, passing(pair.listener) as passes:
            connection = pair.listener._connection
            data_to_send = connection.data_to_send

            def fail(_limit: int, _now: float) -> bytes:
                # Once: what it was about is lost, so the session must not go on without it.
                connection.data_to_send = data_to_send  # type: ignore[method-assign]
                raise RuntimeError("a bug")

            connection.data_to_send = fail  # type: ignore[method-assign]
            await passes.make(
                lambda: ask(pair), lambda: passes.readiness.at_end(lambda: made.append("the next")) and None
            )

    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a bug"), flatten_subgroups=True):
        await use_and_fail()
    assert made == ["the next"]


# --- the end ---


async def test_a_farewell_that_is_not_taken_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async with open_pair() as pair:
        pair.wire.stuck = True
        pair.listener.end(4403, "one relay too many")
        await trio.sleep(FAREWELL_S / 2)
        assert pair.wire.closed_with is None
        await trio.sleep(FAREWELL_S)
        assert pair.wire.closed_with == (4403, "one relay too many")


async def test_a_transport_that_takes_nothing_more_is_lost_though_it_brings_nothing_to_an_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        await wait_all_tasks_blocked()

        async def fail(message: bytes) -> None:
            raise TransportClosed(None, "the connection was reset")

        pair.wire.send = fail  # type: ignore[method-assign]
        pair.open_stream()
        # The reader has that long to find out why.
        with trio.fail_after(FAREWELL_S * 1.1):
            assert await pair.listener.wait_closed() == "tunnel lost: the connection was reset"


async def test_the_end_of_the_last_stream_is_noticed_without_an_answer_of_the_peer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_pair() as pair:
        asking = pair.dialer.open_stream(b"GET", context=pair.dialer.add_context(1, b"x"), eof=True)
        answering = await accept(pair.listener)
        # No frame of the peer, not even an ACK, can report it.
        pair.wire.unplugged = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.listener.wait_quiet)
            await wait_all_tasks_blocked()
            began = trio.current_time()
            answering.send_answer_nowait(b"200", eof=True)
            answering.close_nowait()
        assert trio.current_time() - began < 0.1
        pair.wire.unplugged = False
        asking.close_nowait()
