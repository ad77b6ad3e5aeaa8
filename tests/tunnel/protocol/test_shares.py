"""Who makes room when memory is short: two sessions of one process, driven at random.

Whenever a stream is taken something from, its group holds no less than an equal part of what all hold; and
once all have had their turn, no account is at its limit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import attrs
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.tunnel.protocol import recorded
from tests.tunnel.protocol.joined import Joined
from tunnel.protocol.connection.holdings import Holdings
from tunnel.protocol.memory import Evictor, Holder, Memory
from tunnel.protocol.streams import StreamState

KIB = 1024


@attrs.define(eq=False)
class Fair:
    """Stands between an account and its connections, and looks at each eviction."""

    connections: list[Holdings] = attrs.Factory(list)

    def holders(self) -> Iterable[Holder]:
        return [holder for connection in self.connections for holder in connection.holders()]

    def evict(self, holder: Holder) -> None:
        held: dict[Hashable, int] = {}
        for each in self.holders():
            held[each.group] = held.get(each.group, 0) + each.held_bytes
        assert held[holder.group] * sum(map(bool, held.values())) >= sum(held.values())
        (owner,) = [connection for connection in self.connections if holder in connection.holders()]
        owner.evict(holder)


class Account(Memory):
    """The process's, to which `fair` stands for all that join it."""

    fair: Fair

    def join(self, evictor: Evictor) -> None:
        assert isinstance(evictor, Holdings)
        self.fair.connections.append(evictor)
        super().join(self.fair)

    def leave(self, evictor: Evictor) -> None:
        assert isinstance(evictor, Holdings)
        self.fair.connections.remove(evictor)


class Shares(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.account = Account(512 * KIB)
        self.account.fair = Fair()
        self.sessions = [Joined(dialer_memory=Memory(2**40, parent=self.account)) for _ in range(2)]
        self.contexts = [
            [joined.listener.add_context(group, b"token").index for group in (1, 2, 3)]
            for joined in self.sessions
        ]
        self.opened: list[tuple[Joined, StreamState]] = []
        self.accepted: list[tuple[Joined, StreamState]] = []

    @rule(
        session=st.integers(0, 1), group=st.integers(0, 2), count=st.integers(1, 5), size=st.integers(0, 64)
    )
    def open(self, session: int, group: int, count: int, size: int) -> None:
        joined = self.sessions[session]
        for _ in range(count):
            state = joined.open(context=self.contexts[session][group])
            joined.listener.streams.send_data(state, bytes(size * KIB))
            self.opened.append((joined, state))
        self.flow()

    @rule(which=st.integers(0, 50), size=st.integers(1, 64))
    def send(self, which: int, size: int) -> None:
        self._use(
            self.opened, which, lambda joined, s: joined.listener.streams.send_data(s, bytes(size * KIB))
        )

    @rule(which=st.integers(0, 50), size=st.integers(1, 64))
    def take(self, which: int, size: int) -> None:
        self._use(
            self.accepted, which, lambda joined, s: joined.dialer.streams.take(s, size * KIB, joined.now)
        )

    @rule(which=st.integers(0, 50), size=st.integers(1, 200))
    def answer(self, which: int, size: int) -> None:
        # Without credit, it stays in the queue of the side that is short.
        self._use(
            self.accepted, which, lambda joined, s: joined.dialer.streams.send_data(s, bytes(size * KIB))
        )

    def _use(
        self,
        states: list[tuple[Joined, StreamState]],
        which: int,
        use: Callable[[Joined, StreamState], object],
    ) -> None:
        if states:
            joined, state = states[which % len(states)]
            use(joined, state)
            joined.now += 1
            self.flow()

    def flow(self) -> None:
        for joined in self.sessions:
            joined.flow()
            for event in joined.at_dialer:
                if isinstance(event, recorded.StreamOpened):
                    self.accepted.append((joined, event.stream))
            joined.at_dialer.clear()
            joined.at_listener.clear()
        self.opened = [each for each in self.opened if not each[0].listener.table.is_over(each[1])]
        self.accepted = [each for each in self.accepted if not each[0].dialer.table.is_over(each[1])]

    @invariant()
    def there_is_room(self) -> None:
        if hasattr(self, "account"):
            assert not self.account.full


TestShares = Shares.TestCase
TestShares.settings = settings(stateful_step_count=40)
