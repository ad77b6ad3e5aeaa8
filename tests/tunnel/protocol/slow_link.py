"""Two connections joined by a link of some rate and delay, with a buffer before it that has no bound.

That buffer is the worst there can be: nothing is lost, nothing blocks, and what one end sends too early
waits. Time is virtual, and only what the two connections are asked makes them act, as in the shell.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

import attrs

from tests.tunnel.protocol import recorded
from tests.tunnel.protocol.joined import Joined
from tests.tunnel.protocol.recorded import Recorded
from tunnel.protocol import frames
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.protocol.streams import StreamState

CHUNK = bytes(64 * 1024)


@attrs.define(eq=False)
class Way:
    """One direction."""

    bytes_per_s: float
    delay_s: float
    jitter_s: float = 0.0
    """How much later a message may be looked at, by a busy machine; those behind it wait for it."""
    free_at: float = 0.0
    _chance: random.Random = attrs.Factory(lambda: random.Random(1))
    _arrived_at: float = 0.0

    def send(self, size: int, now: float) -> float:
        """When a message of `size` bytes that is sent now has arrived."""
        self.free_at = max(now, self.free_at) + size / self.bytes_per_s
        late_s = self._chance.uniform(0, self.jitter_s)
        self._arrived_at = max(self._arrived_at, self.free_at + self.delay_s + late_s)
        return self._arrived_at

    def queue_s(self, now: float) -> float:
        """How long what is sent now waits for its first byte to leave."""
        return max(0.0, self.free_at - now)


class SlowLink(Joined):
    untimed = False

    def __init__(self, *, mbit_per_s: float, rtt_s: float, jitter_s: float = 0.0) -> None:
        super().__init__(
            hello=Hello(features=(frames.RESUME,)),
            welcome=Welcome(session_id="s", resume_ttl_s=60, features=(frames.RESUME,)),
        )
        rate = mbit_per_s * 1e6 / 8
        self.down = Way(rate, rtt_s / 2, jitter_s)
        self.up = Way(rate, rtt_s / 2, jitter_s)
        self.taken: dict[StreamState, int] = {}
        """Bytes that the listener took, by stream."""
        self.bulk: set[StreamState] = set()
        """The dialer's streams that always have more to send."""
        self.on_data: Callable[[StreamState], None] = lambda stream: None
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._deadlines: set[float] = set()
        # A PING on the idle link, as the shell sends it with the first stream.
        self.listener.deadlines.ping(self.now)
        self.dialer.deadlines.ping(self.now)
        self._turn()
        self.run(1.0)

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (when, next(self._order), what))

    def download(self) -> StreamState:
        """A stream over which the dialer sends without end; returns the listener's side of it."""
        opened = self.open()
        self._turn()
        while not any(isinstance(event, recorded.StreamOpened) for event in self.at_dialer):
            self._step()
        (accepted,) = [event.stream for event in self.at_dialer if isinstance(event, recorded.StreamOpened)]
        self.at_dialer.clear()
        self.dialer.streams.send_head(accepted, b"head", eof=False)
        self.bulk.add(accepted)
        self._turn()
        return opened

    def quiet(self, opened: StreamState) -> list[StreamState]:
        """Let the dialer's side of a stream have no more to send than it is told; returns it."""
        sides = [stream for stream in self.bulk if stream.id == opened.id]
        self.bulk.difference_update(sides)
        return sides

    def run(self, seconds: float) -> None:
        until = self.now + seconds
        self.at(until, lambda: None)
        while self._coming and self._coming[0][0] <= until:
            self._step()
        self.now = until

    def _step(self) -> None:
        self.now, _, what = heapq.heappop(self._coming)
        what()
        self._turn()

    def _turn(self) -> None:
        """Let both ends do whatever they can do now."""
        for connection, way in ((self.listener, self.up), (self.dialer, self.down)):
            if connection.deadlines.next() <= self.now:
                connection.deadlines.tick(self.now)
            self._consume(connection)
            while True:
                if connection is self.dialer:
                    for stream in self.bulk:
                        if stream.outgoing.size < len(CHUNK):
                            connection.streams.send_data(stream, CHUNK)
                message = connection.data_to_send(connection.message_bytes, self.now)
                if not message:
                    break
                peer = self.peer_of(connection)
                self.at(way.send(len(message), self.now), self._arrival(peer, message))
            deadline = connection.deadlines.next()
            # Once: each step would add an event for the deadline that the step before has added one for.
            if self.now < deadline < self.now + 60 and deadline not in self._deadlines:
                self._deadlines.add(deadline)
                self.at(deadline, partial(self._deadlines.discard, deadline))

    def _arrival(self, connection: Recorded, message: bytes) -> Callable[[], None]:
        def arrive() -> None:
            self.events_at(connection).extend(connection.receive(message, self.now))

        return arrive

    def _consume(self, connection: Recorded) -> None:
        happened = self.events_at(connection)
        for event in happened:
            match event:
                case recorded.DataReceived(stream):
                    while data := connection.streams.take(stream, 1 << 20, self.now):
                        if connection is self.listener:
                            self.taken[stream] = self.taken.get(stream, 0) + len(data)
                            self.on_data(stream)
                case _:
                    pass
        happened[:] = [event for event in happened if isinstance(event, recorded.StreamOpened)]
        happened.extend(connection.take_events())
