"""A state machine that drives two joined connections at random and compares them with a model."""

from __future__ import annotations

from collections import deque

import attrs
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.tunnel.protocol import recorded
from tests.tunnel.protocol.joined import Joined
from tests.tunnel.protocol.onlooker import Watched
from tests.tunnel.protocol.recorded import Recorded
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.protocol.memory import Memory
from tunnel.protocol.state import ENDED
from tunnel.protocol.streams import StreamState

PATTERN = bytes(range(251)) * 1200


@attrs.define(eq=False)
class Direction:
    """The bytes sent one way, and those received of them."""

    said: bytearray = attrs.Factory(bytearray)
    heard: bytearray = attrs.Factory(bytearray)
    head: bytes | None = None
    ended: bool = False
    """The speaker has said that this is all."""
    cut: bool = False
    """A side reset the stream at once, so that a beginning may be all that arrives."""

    def hear(self, data: bytes) -> None:
        start = len(self.heard)
        assert data == self.said[start : start + len(data)], f"at byte {start}"
        self.heard += data


@attrs.define(eq=False)
class End:
    """One side of one stream."""

    connection: Recorded
    state: StreamState
    speaks: Direction
    hears: Direction
    answered: bool = False
    left: bool = False
    """This side has reset it, or has got its reset."""
    broken_in_line: bool = False

    def take(self, limit: int, now: float) -> bytes:
        data = self.connection.streams.take(self.state, limit, now)
        self.hears.hear(data)
        return data

    def check_end(self) -> None:
        """At the end of the bytes: was it the right place?"""
        if self.state.incoming.size:
            return
        if self.state.receiving is ENDED and not self.hears.cut:
            assert self.hears.ended
            assert self.hears.heard == self.hears.said
        if self.broken_in_line and not self.hears.cut:
            assert self.hears.heard == self.hears.said


class TwoSides(RuleBasedStateMachine):
    @initialize(
        frame=st.sampled_from([16 * 1024, 128 * 1024]),
        window=st.sampled_from([1, 700, 64 * 1024]),
        other_window=st.sampled_from([5000, 64 * 1024, 1024 * 1024]),
    )
    def greet(self, frame: int, window: int, other_window: int) -> None:
        self.joined = self.join(
            Hello(max_frame=frame, initial_window=window),
            Welcome(session_id="s", initial_window=other_window),
        )
        self.sides = (self.joined.listener, self.joined.dialer)
        self.contexts: dict[Recorded, list[int]] = {
            self.joined.listener: [self.joined.context],
            self.joined.dialer: [],
        }
        self.payloads: dict[tuple[Recorded, int], bytes] = {
            (self.joined.listener, self.joined.context): b"token"
        }
        self.ends: list[End] = []
        self.opened: dict[Recorded, deque[End]] = {side: deque() for side in self.sides}
        """What each side opened and the other has not seen yet, in the order that the ids will have."""

    def join(self, hello: Hello, welcome: Welcome) -> Joined:
        return Watched(
            hello=hello, welcome=welcome, listener_memory=Memory(2**40), dialer_memory=Memory(2**40)
        )

    # --- what owners do ---

    @rule(side=st.integers(0, 1), group=st.integers(0, 3), payload=st.binary(min_size=1, max_size=20))
    def add_context(self, side: int, group: int, payload: bytes) -> None:
        connection = self.sides[side]
        context = connection.add_context(group, payload)
        self.contexts[connection].append(context.index)
        self.payloads[connection, context.index] = payload

    @rule(side=st.integers(0, 1), which=st.integers(0, 9))
    def retire_context(self, side: int, which: int) -> None:
        connection = self.sides[side]
        live = self.contexts[connection]
        if live:
            connection.contexts.retire(live.pop(which % len(live)))

    @rule(side=st.integers(0, 1), which=st.integers(0, 9), size=st.integers(0, 40_000), eof=st.booleans())
    def open(self, side: int, which: int, size: int, eof: bool) -> None:
        connection = self.sides[side]
        live = self.contexts[connection]
        if not live:
            return
        there, back = Direction(head=PATTERN[:size], ended=eof), Direction()
        state = connection.open(PATTERN[:size], live[which % len(live)], eof=eof, now=self.joined.now)
        self.ends.append(End(connection, state, there, back))

    def pick(self, which: int) -> End | None:
        able = [end for end in self.ends if not end.left]
        return able[which % len(able)] if able else None

    @rule(which=st.integers(0, 50), size=st.integers(0, 20_000), eof=st.booleans())
    def answer(self, which: int, size: int, eof: bool) -> None:
        end = self.pick(which)
        if end is None or end.state.opened_here or end.answered or end.speaks.said or end.speaks.ended:
            return
        end.answered = True
        end.speaks.head, end.speaks.ended = PATTERN[:size], eof
        end.connection.streams.send_head(end.state, PATTERN[:size], eof=eof)

    @rule(which=st.integers(0, 50), start=st.integers(0, 250), size=st.integers(0, 200_000))
    def speak(self, which: int, start: int, size: int) -> None:
        end = self.pick(which)
        if end is not None and not end.speaks.ended:
            data = PATTERN[start : start + size]
            end.speaks.said += data
            end.connection.streams.send_data(end.state, data)

    @rule(which=st.integers(0, 50))
    def end_it(self, which: int) -> None:
        end = self.pick(which)
        if end is not None and not end.speaks.ended:
            end.speaks.ended = True
            end.connection.streams.send_data(end.state, b"", eof=True)

    @rule(which=st.integers(0, 50), limit=st.integers(1, 100_000))
    def listen(self, which: int, limit: int) -> None:
        end = self.pick(which)
        if end is not None:
            end.take(limit, self.joined.now)
            end.check_end()

    @rule(which=st.integers(0, 50), in_line=st.booleans())
    def reset(self, which: int, in_line: bool) -> None:
        end = self.pick(which)
        if end is None:
            return
        over = end.connection.table.is_over(end.state)
        end.left = True
        end.hears.cut = True
        if not over and not in_line:
            end.speaks.cut = True
        end.connection.streams.reset(end.state, StreamCode.CANCEL, Processed.MAYBE, "", in_line=in_line)

    # --- what the network does ---

    @rule(side=st.integers(0, 1), limit=st.integers(256, 300_000))
    def send(self, side: int, limit: int) -> None:
        self.joined.send(self.sides[side], limit)
        self.happen()

    @rule(side=st.integers(0, 1))
    def deliver(self, side: int) -> None:
        self.joined.deliver(self.sides[side])
        self.happen()

    @rule(step=st.sampled_from([0.0001, 0.01, 0.06, 1.0, 6.0]))
    def wait(self, step: float) -> None:
        self.joined.now += step
        for connection in self.sides:
            connection.deadlines.tick(self.joined.now)

    @precondition(lambda self: self.ends)
    @rule()
    def flow(self) -> None:
        self.joined.flow()
        self.happen()

    def happen(self) -> None:
        for connection in self.sides:
            happened = self.joined.events_at(connection)
            while happened:
                self.on_event(connection, happened.pop(0))

    def on_event(self, connection: Recorded, event: recorded.Event) -> None:
        match event:
            case recorded.StreamOpened(state):
                peer = self.joined.peer_of(connection)
                (opener,) = [end for end in self.ends if end.connection is peer and end.state.id == state.id]
                assert state.head == opener.speaks.head
                index = opener.state.context.index
                assert state.context.payload == self.payloads[peer, index]
                self.ends.append(End(connection, state, opener.hears, opener.speaks))
            case recorded.HeadReceived(state):
                end = self.end_of(state)
                assert state.answer_head == end.hears.head
            case recorded.StreamBroken(state):
                end = self.end_of(state)
                assert event.code is StreamCode.CANCEL, event
                end.left = True
                end.speaks.cut = True
                end.broken_in_line = event.in_line
                while event.in_line and end.take(65536, self.joined.now):
                    pass
                end.check_end()
            case _:
                pass

    def end_of(self, state: StreamState) -> End:
        (end,) = [end for end in self.ends if end.state is state]
        return end

    # --- what must hold at every moment ---

    @invariant()
    def memory_is_what_is_held(self) -> None:
        for connection in getattr(self, "sides", ()):
            holdings = connection.holdings
            held = sum(holder.held_bytes for holder in holdings.holders() if holder is not holdings)
            shared = [*connection.contexts.own.values(), *connection.contexts.peers.values()]
            assert connection.memory.used_bytes == (
                held + sum(len(context.payload) for context in shared) + connection.sent.charged_bytes
            )

    @invariant()
    def resets_of_the_peers_streams_are_counted(self) -> None:
        for connection in getattr(self, "sides", ()):
            resets = connection.resets.unacknowledged
            assert connection.resets.of_peer == sum(id % 2 == connection.resets.peer_parity for id in resets)

    @invariant()
    def credit_is_kept(self) -> None:
        for connection in getattr(self, "sides", ()):
            for state in connection.table.by_id.values():
                assert state.window.credit >= 0
                assert state.send_credit >= 0

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        # Both sides send the rest, and receive everything.
        for _ in range(3):
            self.joined.flow()
            self.happen()
            for end in list(self.ends):
                if not end.left and not end.speaks.ended:
                    end.speaks.ended = True
                    end.connection.streams.send_data(end.state, b"", eof=True)
        moved = True
        while moved:
            self.joined.flow()
            self.happen()
            taken = [end.take(65536, self.joined.now) for end in self.ends if not end.left]
            moved = any(taken)
        for end in self.ends:
            end.check_end()
            if not end.left:
                assert end.state.receiving is ENDED
                assert end.state.sending.at_rest
        for connection in self.sides:
            assert connection.table.count == 0
            assert list(connection.holdings.holders()) == []
            for index in self.contexts[connection]:
                connection.contexts.retire(index)
        self.joined.flow()
        self.joined.now += 1
        for connection in self.sides:
            connection.deadlines.tick(self.joined.now)
        self.joined.flow()
        for connection in self.sides:
            assert connection.memory.used_bytes == 0
            assert connection.sent.unacknowledged_bytes == 0
            assert connection.resets.unacknowledged == {}
            assert connection.resets.of_peer == 0
            assert connection.scheduler.groups == {}
            assert len(connection.scheduler.ring) == 0
