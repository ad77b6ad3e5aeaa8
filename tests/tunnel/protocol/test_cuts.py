"""The two sides of `test_two_sides`, over links that are cut at any byte and made again.

The model stays what it is: it knows nothing of links, and demands every byte once, in order, whatever has
become of them. Links are lost in the middle of a message, on its way and while it is taken apart, in the
middle of the greeting that should have replaced another, and again; a listener may notice that or go on for
long with a link that is dead.
"""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from tests.tunnel.protocol import recorded
from tests.tunnel.protocol.cuttable import Cuttable
from tests.tunnel.protocol.joined import Joined
from tests.tunnel.protocol.recorded import Recorded
from tests.tunnel.protocol.two_sides import PATTERN, TwoSides
from tunnel.protocol.connection import Phase
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.protocol.memory import Memory


class Tight(Memory):
    """An account with room for every stream, and for the smallest ledger only."""

    @property
    def headroom_bytes(self) -> int:
        return 0


class Cuts(TwoSides):
    joined: Cuttable
    cuts_in_all = 0

    def join(self, hello: Hello, welcome: Welcome) -> Joined:
        joined = Cuttable(
            hello=hello, welcome=welcome, listener_memory=Tight(2**40), dialer_memory=Tight(2**40)
        )
        joined.frames_max = 3
        for connection in (joined.listener, joined.dialer):
            # Another test covers a resumption that is too late.
            connection.status.resume_ttl_s = 1e9
        self.opened_ids: set[tuple[Recorded, int]] = set()
        return joined

    # --- what the network does ---

    @precondition(lambda self: hasattr(self, "sides"))
    @rule(listener_notices=st.booleans(), arrives=st.integers(0, 100_000), sent=st.booleans())
    def lose(self, listener_notices: bool, arrives: int, sent: bool) -> None:
        if sent:
            for connection in self.sides:
                self.joined.send(connection)
        self.joined.lose(listener_notices=listener_notices, arrives=arrives)
        type(self).cuts_in_all += 1
        self.happen()

    @precondition(lambda self: hasattr(self, "sides"))
    @rule(
        talk=st.lists(
            st.tuples(
                st.integers(0, 50), st.integers(0, 250), st.integers(1, 90_000), st.integers(0, 30_000)
            ),
            min_size=1,
            max_size=8,
        ),
        limit=st.integers(256, 70_000),
        listener_notices=st.booleans(),
    )
    def talk_and_lose_it(
        self, talk: list[tuple[int, int, int, int]], limit: int, listener_notices: bool
    ) -> None:
        if len([end for end in self.ends if not end.left]) < 4:
            for side in (0, 1, 0):
                self.open(side, 0, 300, False)
        if self.joined.at_dialer_link is None:
            self.joined.dial()
        for number, (which, start, size, count) in enumerate(talk):
            self.speak(which, start, size)
            self.listen(which + 1, size)
            connection = self.sides[number % 2]
            self.joined.send(connection, limit)
            self.joined.move(connection, count)
            self.happen()
        self.lose(listener_notices, talk[0][3], True)

    @precondition(lambda self: hasattr(self, "sides") and self.joined.at_dialer_link is None)
    @rule()
    def dial(self) -> None:
        self.joined.dial()

    @precondition(lambda self: hasattr(self, "sides") and self.joined.at_dialer_link is None)
    @rule(counts=st.lists(st.integers(1, 400), max_size=6), listener_notices=st.booleans())
    def dial_and_lose_it_in_the_greeting(self, counts: list[int], listener_notices: bool) -> None:
        self.joined.dial()
        for number, count in enumerate(counts):
            connection = self.sides[number % 2]
            self.joined.send(connection)
            self.joined.move(connection, count)
        self.lose(listener_notices, 0, False)

    @rule(side=st.integers(0, 1), count=st.integers(1, 70_000))
    def deliver_bytes(self, side: int, count: int) -> None:
        self.joined.move(self.sides[side], count)
        self.happen()

    @precondition(lambda self: hasattr(self, "sides"))
    @rule(cut=st.booleans(), arrives=st.integers(0, 100_000))
    def fill_both_ledgers(self, cut: bool, arrives: int) -> None:
        # Both sides have room in their windows only for streams that were opened.
        for side in (0, 1):
            self.open(side, 0, 300, False)
        self.joined.flow()
        self.happen()
        for end in [end for end in self.ends if not (end.left or end.speaks.ended)][-6:]:
            end.speaks.said += PATTERN
            end.connection.streams.send_data(end.state, PATTERN)
        for connection in self.sides:
            while self.joined.send(connection):
                pass
        self.happen()
        if cut:
            self.lose(True, arrives, False)

    def on_event(self, connection: Recorded, event: recorded.Event) -> None:
        match event:
            case recorded.StreamOpened(state):
                assert (connection, state.id) not in self.opened_ids, "an OPEN was executed twice"
                self.opened_ids.add((connection, state.id))
            case recorded.StreamBroken(state) if event.code is StreamCode.REFUSED:
                # It waited too long for a link.
                assert event.processed is Processed.NO
                assert state.id == 0
                end = self.end_of(state)
                end.left = True
                end.speaks.cut = True
                return
            case _:
                pass
        super().on_event(connection, event)

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "sides"):
            for connection in self.sides:
                assert connection.status.phase is Phase.OPEN
                assert connection.sent.charged_bytes == 0
                assert not connection.sent.replaying
            assert self.joined.listener.received.count == self.joined.dialer.sent.next_number
            assert self.joined.dialer.received.count == self.joined.listener.sent.next_number


TestCuts = Cuts.TestCase
# Some hundreds of cuts.
TestCuts.settings = settings(max_examples=50, stateful_step_count=80)


@pytest.mark.long
def test_ten_thousand_cuts() -> None:
    Cuts.cuts_in_all = 0
    run_state_machine_as_test(Cuts, settings=settings(max_examples=1000, stateful_step_count=150))
    print(f"{Cuts.cuts_in_all} cuts")
    assert Cuts.cuts_in_all >= 10_000
