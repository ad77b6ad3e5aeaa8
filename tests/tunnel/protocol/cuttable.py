"""Two connections joined by two streams of bytes that can be cut anywhere, and joined again.

What a shell does is done here in the plainest way: a message is a length and its bytes, and is taken when
all of it is there, `frames_max` frames at a time; a dialer that has lost its link makes a new one and says
HELLO on it; a listener goes on with its old link, which may long be dead, until that HELLO comes.
"""

from __future__ import annotations

from collections import deque

import attrs

from tests.tunnel.protocol.joined import Joined
from tests.tunnel.protocol.recorded import Recorded
from tunnel.protocol import frames, greetings
from tunnel.protocol.connection import Phase
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.protocol.ledger import ACK_AFTER_S
from tunnel.protocol.memory import Memory

RESUMING = {"features": (frames.RESUME,)}


@attrs.define(eq=False)
class Way:
    """Bytes in one direction of one link."""

    moving: bytearray = attrs.Factory(bytearray)
    arrived: bytearray = attrs.Factory(bytearray)
    whole: deque[bytes] = attrs.Factory(deque)
    """The messages that are all there, the first of them perhaps without the frames that were taken."""
    cut: bool = False
    """What moves now still arrives, and nothing after it."""

    def send(self, message: bytes) -> None:
        if not self.cut:
            self.moving += len(message).to_bytes(4, "big") + message

    def move(self, count: int) -> bool:
        """Let `count` bytes arrive; returns whether there is anything new to do."""
        self.arrived += self.moving[:count]
        moved = bool(self.moving or self.whole)
        del self.moving[:count]
        while len(self.arrived) >= 4:
            end = 4 + int.from_bytes(self.arrived[:4], "big")
            if len(self.arrived) < end:
                break
            self.whole.append(bytes(self.arrived[4:end]))
            del self.arrived[:end]
        return moved


@attrs.define(eq=False)
class Link:
    to_listener: Way = attrs.Factory(Way)
    to_dialer: Way = attrs.Factory(Way)


class Cuttable(Joined):
    frames_max = frames.MESSAGE_BYTES_MAX
    """What is taken of a message before others have their turn."""

    def __init__(
        self,
        *,
        hello: Hello | None = None,
        welcome: Welcome | None = None,
        listener_memory: Memory | None = None,
        dialer_memory: Memory | None = None,
    ) -> None:
        # Each side's own view of the link that it has.
        self.at_listener_link: Link | None = None
        self.at_dialer_link: Link | None = None
        self.pending: Link | None = None
        """A new link whose HELLO the listener has not heard yet."""
        self.cuts = 0
        super().__init__(
            hello=attrs.evolve(hello or Hello(), **RESUMING),
            welcome=attrs.evolve(welcome or Welcome(session_id="s"), resume_ttl_s=60, **RESUMING),
            listener_memory=listener_memory,
            dialer_memory=dialer_memory,
        )
        self.at_listener_link = self.at_dialer_link = Link()
        while self.to_dialer:
            self.at_listener_link.to_dialer.send(self.to_dialer.popleft())

    # --- what a shell does ---

    def send(self, connection: Recorded, limit: int = 64 * 1024) -> bytes:
        link = self.at_listener_link if connection is self.listener else self.at_dialer_link
        if link is None:
            return super().send(connection, limit) if self.greeting else b""
        if connection is self.dialer and connection.status.phase is Phase.DETACHED:
            return b""
        wanted, unsent = connection.wants_to_send, connection.has_unsent
        message = connection.data_to_send(limit, self.now)
        assert (wanted and unsent) or not message
        if message:
            (link.to_dialer if connection is self.listener else link.to_listener).send(message)
        self.events_at(connection).extend(connection.take_events())
        return message

    @property
    def greeting(self) -> bool:
        return Phase.GREETING in (self.listener.status.phase, self.dialer.status.phase) or bool(
            self.to_listener or self.to_dialer
        )

    def deliver(self, connection: Recorded) -> bool:
        if self.at_listener_link is None and self.at_dialer_link is None:
            return super().deliver(connection)
        moved = self.move(connection, 10**9)
        return moved

    def move(self, connection: Recorded, count: int) -> bool:
        """Let `count` bytes arrive at `connection`; returns whether any did."""
        if connection is self.dialer:
            link = self.at_dialer_link
            if link is None or not link.to_dialer.move(count):
                return False
            self.take_messages(self.dialer, link.to_dialer)
            return True
        moved = False
        link = self.at_listener_link
        if link is not None and link.to_listener.move(count):
            moved = True
            self.take_messages(self.listener, link.to_listener)
        if self.pending is not None and self.pending.to_listener.move(count):
            moved = True
            while self.pending is not None and self.pending.to_listener.whole:
                self.hear_hello(self.pending.to_listener.whole.popleft())
        return moved

    def take_messages(self, connection: Recorded, way: Way) -> None:
        """Take what is there, up to a message of which something is left; that is gone with its link."""
        unread = b""
        while way.whole and not unread:
            message = way.whole.popleft()
            self.events_at(connection).extend(connection.receive(message, self.now, self.frames_max))
            unread = connection.feed.unread
        if unread:
            way.whole.appendleft(unread)

    def hear_hello(self, message: bytes) -> None:
        """The new link has brought its HELLO; what the old one would still have brought is lost."""
        assert self.pending is not None
        payload = message[frames.HEADER_BYTES :]
        resume = greetings.decode_hello(payload).resume
        assert resume is not None
        assert resume.session_id == "s"
        self.listener.resumption.detach(self.now)
        assert self.listener.resumption.may_attach(resume)
        sent, received = self.listener.sent, self.listener.received
        for wrong in (
            attrs.evolve(resume, last_rx=sent.next_number + 1),
            attrs.evolve(resume, last_rx=sent.acknowledged - 1),
            attrs.evolve(resume, first_tx=received.count + 1),
            attrs.evolve(resume, next_tx=received.count - 1),
        ):
            assert not self.listener.resumption.may_attach(wrong)
        assert not self.listener.resumption.is_outdated(resume)
        self.listener.resumption.attach_listener(resume, self.now)
        assert self.listener.resumption.is_outdated(resume)
        self.at_listener_link, self.pending = self.pending, None

    def dial(self) -> None:
        """The dialer makes a new link, whatever has become of the old one."""
        assert self.dialer.status.phase is Phase.DETACHED
        self.cut(self.at_dialer_link)
        self.pending = self.at_dialer_link = Link()
        self.at_dialer_link.to_listener.send(greetings.hello(self.dialer.resumption.hello_again()))

    def lose(self, *, listener_notices: bool, arrives: int) -> None:
        """The link is lost: `arrives` bytes of those that move to the dialer still do."""
        self.cuts += 1
        link = self.at_dialer_link
        if link is not None:
            self.move(self.dialer, arrives)
        self.cut(link)
        self.at_dialer_link = None
        self.dialer.resumption.detach(self.now)
        if self.pending is link:
            # Its HELLO will never be received.
            self.pending = None
        if listener_notices and self.at_listener_link is not None:
            self.cut(self.at_listener_link)
            self.at_listener_link = None
            self.listener.resumption.detach(self.now)

    def cut(self, link: Link | None) -> None:
        if link is not None:
            link.to_listener.cut = link.to_dialer.cut = True

    def flow(self) -> None:
        if not self.greeting and self.at_dialer_link is None:
            self.dial()
        super().flow()
        if not self.greeting and (self.listener.sent.full or self.dialer.sent.full):
            # What was acknowledged in part counts whole, so a full ledger may wait for the next ACK. Time
            # stands still otherwise, or no window would ever grow, and one of a byte takes for ever.
            self.now += ACK_AFTER_S
            for connection in (self.listener, self.dialer):
                connection.deadlines.tick(self.now)
            super().flow()
