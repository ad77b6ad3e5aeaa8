"""The relay's side of a call in either mode: a stream of a tunnel, or a connection in direct mode."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from proxy.exchange.engine import Port


class RelaySide(Port, Protocol):
    """The port of a relay's side, with what limits and the trail have to know of it."""

    bytes_passed: int
    """The bytes of the answer's body, or the raw bytes after a 101."""
    bytes_dropped: int
    """The client's raw bytes that the relay takes no more."""

    @property
    def peer(self) -> Hashable:
        """The fairness key of the relay."""
        ...

    @property
    def held_bytes(self) -> int:
        """The memory that it uses, without that of a tunnel."""
        ...

    @property
    def evicted(self) -> bool:
        """Whether its stream was evicted for memory."""
        ...

    def close(self) -> None:
        """Free what it uses; its exchange is over. May be called again."""
        ...
