"""The greeting: HELLO and WELCOME of a new session (PROTOCOL.md, "Greeting").

On a further transport of the same session the WELCOME is the `Resumption`'s.
"""

from __future__ import annotations

import attrs

from tunnel.protocol import frames, greetings
from tunnel.protocol.connection.resumption import Resumption
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.events import GoAway
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.protocol.session.status import DETACHED, GREETING, Role, Status

__all__ = ["Handshake"]


@attrs.define(eq=False)
class Handshake:
    status: Status
    control: ControlQueue
    resumption: Resumption
    peer_hello: Hello | None = attrs.field(init=False, default=None)
    """The dialer's, which a WELCOME answers."""
    refusal: GoAway | None = attrs.field(init=False, default=None)
    """The listener's GOAWAY in the greeting: it wants no session."""

    def say_hello(self, hello: Hello) -> None:
        """Queue the dialer's HELLO; everything else waits for the answer."""
        assert self.status.role is Role.DIALER
        assert self.status.phase is GREETING
        self.status.local = hello
        self.control.greeting = greetings.hello(hello)

    def say_welcome(self, welcome: Welcome, peer: Hello) -> None:
        """Queue the listener's answer to `peer`; the session is open with it."""
        assert self.status.role is Role.LISTENER
        assert self.status.phase is GREETING
        self.status.local = welcome
        self.control.greeting = greetings.welcome(welcome)
        self.resumption.settle(peer)

    def receive(self, frame_type: int, stream_id: int, payload: bytes, now: float) -> None:
        """Take a frame that comes before the session is open, or open again."""
        status = self.status
        dials = status.role is Role.DIALER
        assert status.phase is not DETACHED or dials
        if frame_type == frames.GOAWAY and dials and status.phase is GREETING:
            self.refusal = GoAway(*frames.decode_goaway(payload))
            return
        if frame_type != (frames.WELCOME if dials else frames.HELLO) or stream_id != 0:
            raise RemoteProtocolError(f"frame type {frame_type} before the greeting")
        if len(payload) > frames.GREETING_BYTES_MAX:
            raise RemoteProtocolError(
                f"a greeting of {len(payload)} bytes exceeds {frames.GREETING_BYTES_MAX}"
            )
        if not dials:
            hello = greetings.decode_hello(payload)
            if not set(hello.versions) & set(frames.VERSIONS):
                raise RemoteProtocolError(f"no common version: the peer speaks none of {frames.VERSIONS}")
            if self.peer_hello is not None:
                raise RemoteProtocolError("a second greeting")
            self.peer_hello = hello
        elif status.phase is DETACHED:
            self.resumption.receive_welcome(greetings.decode_welcome(payload), now)
        else:
            welcome = greetings.decode_welcome(payload)
            if welcome.version not in frames.VERSIONS:
                raise RemoteProtocolError(f"the peer chose version {welcome.version}, which was not offered")
            self.resumption.settle(welcome)
