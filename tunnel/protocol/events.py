"""The calls by which the core reports what happens to a session; those for a stream are its `StreamOwner`'s.

Every call comes out of the middle of the core's work. It may note what happened and wake tasks. It must not
call the core, and it must not raise.
"""

from __future__ import annotations

from typing import Protocol

import attrs

from tunnel.protocol.streams import Context, StreamState

__all__ = ["GoAway", "SessionOwner"]


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
