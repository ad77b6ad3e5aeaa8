"""The limits that a session is opened with, and those that the peer must know."""

from __future__ import annotations

from typing import TypeVar

import attrs

from tunnel.protocol import frames
from tunnel.protocol.greetings import Hello, Welcome
from tunnel.protocol.liveness import PING_IDLE_S
from tunnel.protocol.session.contexts import CONTEXTS_MAX
from tunnel.protocol.window import INITIAL_WINDOW_BYTES

__all__ = ["GREETING_S", "Settings"]

# PROTOCOL.md, "Limits": for the peer's first message.
GREETING_S = 10.0

_Word = TypeVar("_Word", Hello, Welcome)


@attrs.frozen
class Settings:
    """The limits of one session."""

    max_frame: int = frames.MAX_FRAME_BYTES
    initial_window: int = INITIAL_WINDOW_BYTES
    max_streams: int = frames.STREAMS_MAX
    accept_queue_max: int = 4096
    """Streams of the peer that wait to be accepted; more are REFUSED."""
    contexts_max: int = CONTEXTS_MAX
    """Contexts of the peer that may be live at once; one more ends the session."""
    memory_bytes_max: int = 128 * 1024 * 1024
    """What one session may hold; the process's account may be smaller, or shared."""
    hello_timeout_s: float = GREETING_S
    ping_s: float = PING_IDLE_S
    """Between two PINGs while no stream is open."""

    def stated_in(self, word: _Word) -> _Word:
        """A HELLO or a WELCOME with what the peer must know of them."""
        return attrs.evolve(
            word,
            max_frame=self.max_frame,
            initial_window=self.initial_window,
            max_streams=self.max_streams,
        )
