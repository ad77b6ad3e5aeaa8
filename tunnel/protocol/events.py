"""The calls by which the core reports what happens to a session and to each of its streams.

Every call comes out of the middle of the core's work. It may note what happened and wake tasks. It must not
call the core, and it must not raise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from tunnel.protocol.errors import Processed, StreamCode

if TYPE_CHECKING:
    from tunnel.protocol.streams import Context, StreamState

__all__ = ["GoAway", "SessionOwner", "StreamOwner"]


@attrs.frozen
class GoAway:
    """The contents of a GOAWAY."""

    last_id: int
    code: int
    drain_ms: int
    retry_after_ms: int
    reason: str


class SessionOwner(Protocol):
    """The user of a connection."""

    def on_stream(self, stream: StreamState) -> None:
        """The peer opened a stream, and its head is whole. An owner that is set now misses nothing."""

    def on_context(self, context: Context) -> None:
        """The peer added a context; no stream that names it has been reported before."""

    def on_goaway(self, goaway: GoAway) -> None:
        """The peer said GOAWAY."""

    def on_eviction(self) -> None:
        """A stream was evicted, or the whole session was closed for the memory that it holds.

        Another session may have needed that memory, so this can come at any moment.
        """


class StreamOwner(Protocol):
    """The user of a stream. A stream without an owner reports nothing."""

    def on_head(self) -> None:
        """The acceptor's head is whole, and stands in `answer_head`."""

    def on_data(self) -> None:
        """There are bytes to take, or the clean end behind them."""

    def on_room(self) -> None:
        """The queue of a stream with `drain_wanted` is short again."""

    def on_broken(self, code: StreamCode, processed: Processed, reason: str, *, in_line: bool) -> None:
        """The stream was RESET: by the peer, or here for memory, the peer's fault, or the session's end.

        `in_line`: what was received before may still be taken. Otherwise it is gone.
        """

    def on_doubt(self) -> None:
        """Nothing has come from the peer for a while (PROTOCOL.md, "Liveness")."""
