"""Two connections joined by lossless queues, with a clock that the test turns."""

from __future__ import annotations

from collections import deque

from tests.tunnel.protocol import recorded
from tests.tunnel.protocol.recorded import Recorded
from tunnel.protocol import frames
from tunnel.protocol.congestion import Flight
from tunnel.protocol.connection import Role
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.protocol.memory import Memory
from tunnel.protocol.streams import StreamState

MIB = 1024 * 1024


class Untimed(Flight):
    """Where the clock stands still nothing can be measured, and what is acknowledged by a clock never is."""

    def __attrs_post_init__(self) -> None:
        self.limit_bytes = self.most_bytes

    def acknowledged(self, number: int, size: int, now: float) -> None:
        pass


class Joined:
    untimed = True

    def __init__(
        self,
        *,
        hello: Hello | None = None,
        welcome: Welcome | None = None,
        listener_memory: Memory | None = None,
        dialer_memory: Memory | None = None,
    ) -> None:
        self.now = 100.0
        self.listener = Recorded(Role.LISTENER, now=self.now, memory=listener_memory)
        self.dialer = Recorded(Role.DIALER, now=self.now, memory=dialer_memory)
        if self.untimed:
            self.listener.drain.flight = self.dialer.drain.flight = Untimed()
        self.to_dialer: deque[bytes] = deque()
        self.to_listener: deque[bytes] = deque()
        self.at_listener: list[recorded.Event] = []
        self.at_dialer: list[recorded.Event] = []
        self.dialer.handshake.say_hello(hello or Hello())
        self.send(self.dialer)
        self.deliver(self.listener)
        assert self.listener.handshake.peer_hello is not None
        self.listener.handshake.say_welcome(
            welcome or Welcome(session_id="s"), self.listener.handshake.peer_hello
        )
        self.flow()
        self.at_listener.clear()
        self.at_dialer.clear()
        self.context = self.listener.add_context(1, b"token").index

    def peer_of(self, connection: Recorded) -> Recorded:
        return self.dialer if connection is self.listener else self.listener

    def events_at(self, connection: Recorded) -> list[recorded.Event]:
        return self.at_listener if connection is self.listener else self.at_dialer

    def send(self, connection: Recorded, limit: int = 64 * 1024) -> bytes:
        """Put one message of `connection` on its way; returns it."""
        # A sender is woken by the one, and a task that waits until all is sent goes by the other.
        wanted, unsent = connection.wants_to_send, connection.has_unsent
        message = connection.data_to_send(limit, self.now)
        assert (wanted and unsent) or not message
        if message:
            (self.to_dialer if connection is self.listener else self.to_listener).append(message)
        self.events_at(connection).extend(connection.take_events())
        return message

    def deliver(self, connection: Recorded) -> bool:
        """Hand the next message on its way to `connection`."""
        queue = self.to_listener if connection is self.listener else self.to_dialer
        if not queue:
            return False
        self.events_at(connection).extend(connection.receive(queue.popleft(), self.now))
        return True

    def flow(self) -> None:
        """Exchange messages until neither side has anything to say."""
        moved = True
        while moved:
            moved = False
            for connection in (self.listener, self.dialer):
                while self.send(connection):
                    moved = True
                while self.deliver(self.peer_of(connection)):
                    moved = True

    def open(self, head: bytes = b"head", *, eof: bool = False, context: int | None = None) -> StreamState:
        index = self.context if context is None else context
        return self.listener.open(head, index, eof=eof, now=self.now)

    def streams(self, head: bytes = b"head") -> tuple[StreamState, StreamState]:
        """The two ends of a stream that the listener opened."""
        opened = self.open(head)
        self.flow()
        accepted = [event.stream for event in self.at_dialer if isinstance(event, recorded.StreamOpened)][-1]
        return opened, accepted


def broken(happened: list[recorded.Event]) -> list[recorded.StreamBroken]:
    return [event for event in happened if isinstance(event, recorded.StreamBroken)]


def frames_of(message: bytes) -> list[tuple[int, int, int, bytes]]:
    """Type, flags, stream id and payload of every frame in a message."""
    found, position = [], 0
    while position < len(message):
        frame_type, flags, _, stream_id, length = frames.HEADER.unpack_from(message, position)
        start = position + frames.HEADER_BYTES
        found.append((frame_type, flags, stream_id, message[start : start + length]))
        position = start + length
    assert position == len(message)
    return found
