"""Reads the whole body of a call that waits for an approval."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol, Self

import attrs

# kubectl refuses to apply larger objects long before, since etcd takes 1.5 MiB.
BODY_BYTES_MAX: Final = 1024 * 1024
BODY_S: Final = 10.0
# Of `memory_mib`, the bodies of waiting calls take at most one part in so many.
MEMORY_SHARE: Final = 8


class BodySource(Protocol):
    """A client's connection (`ServerConnection`)."""

    async def receive_body(self) -> bytes:
        """Return body bytes as they arrive; b"" at the clean end. Raises InboundBroken."""


@attrs.define(eq=False)
class BodyBudget:
    """What the bodies of all waiting calls of a hub may take together."""

    bytes_max: int
    """One MEMORY_SHARE of `memory_mib`."""
    held_bytes: int = attrs.field(init=False, default=0)


@attrs.define(eq=False)
class HeldBody:
    """A body in memory, counted in its budget until the context ends."""

    data: bytes
    _budget: BodyBudget

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give the memory back to the budget; idempotent."""
        raise NotImplementedError


async def read_body(connection: BodySource, length: int | None, budget: BodyBudget) -> HeldBody:
    """Read a whole body of BODY_BYTES_MAX at most, within BODY_S; raises CannotAskError and InboundBroken.

    `length` is the head's `body_length`: 0 for no body, None for a chunked one. A cancelled or failed read
    holds nothing in the budget. The connection must not be used for another request after a failure.
    """
    raise NotImplementedError
