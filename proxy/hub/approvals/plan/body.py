"""Reads the whole body of a call that waits for an approval, and makes its plan without blocking others."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Protocol, Self

import attrs
import trio

from auth.policy.ask import Ask
from proxy.hub.approvals.plan.plan import Plan, PlanFacts, plan_of
from proxy.hub.approvals.plan.refusal import CannotAskError
from tunnel import Memory

# etcd takes 1.5 MiB, and an approver reads far less.
BODY_BYTES_MAX: Final = 1024 * 1024
BODY_S: Final = 10.0
# The bodies of waiting calls take at most one such part of `memory_mib`.
MEMORY_SHARE: Final = 8
# Checking a smaller body takes about a millisecond, not much more than handing it to a thread.
_THREAD_BYTES: Final = 32 * 1024
# Each body is checked under the interpreter's lock, so more threads at once gain nothing.
_THREADS: Final = 1


class BodySource(Protocol):
    """A client's connection (`ServerConnection`)."""

    async def receive_body(self) -> bytes:
        """Return body bytes as they arrive; b"" at the clean end. Raises InboundBroken."""


@attrs.define(eq=False)
class BodyBudget:
    """What the bodies of a hub's waiting calls may take together."""

    bytes_max: int
    held_bytes: int = attrs.field(init=False, default=0)
    _limiter: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(_THREADS))

    @classmethod
    def of(cls, memory: Memory) -> Self:
        """Return the budget for a hub with this memory: one MEMORY_SHARE of it."""
        return cls(memory.limit_bytes // MEMORY_SHARE)

    async def plan(self, facts: PlanFacts, body: bytes, ask: Ask) -> Plan:
        """Return the plan of a call; raises CannotAskError.

        A large body is checked in a thread. Once that has begun, a cancellation waits for its end.
        """
        if len(body) <= _THREAD_BYTES:
            return plan_of(facts, body, ask)
        return await trio.to_thread.run_sync(plan_of, facts, body, ask, limiter=self._limiter)


@attrs.define(eq=False)
class HeldBody:
    """A body in memory, counted in its budget until `release`. A context, which releases it."""

    data: bytes
    _budget: BodyBudget
    _held_bytes: int

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Drop the body, and give its memory back to the budget; idempotent."""
        self._budget.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self.data = b""


async def read_body(connection: BodySource, length: int | None, budget: BodyBudget) -> HeldBody:
    """Read a whole body of BODY_BYTES_MAX at most within BODY_S; raises CannotAskError and InboundBroken.

    `length` is the head's `body_length`: 0 for no body, None for a chunked one. A failed or cancelled read
    leaves nothing in the budget. The rest of the body is unread then, so the answer ends the connection.
    """
    if length is not None and length > BODY_BYTES_MAX:
        raise _too_large(f"has {length} bytes")
    read = bytearray()
    whole = False
    try:
        with trio.move_on_after(BODY_S):
            while length != 0 and (data := await connection.receive_body()):
                if len(read) + len(data) > BODY_BYTES_MAX:
                    raise _too_large(f"has more than {BODY_BYTES_MAX} bytes")
                if budget.held_bytes + len(data) > budget.bytes_max:
                    raise _budget_full(budget)
                budget.held_bytes += len(data)
                read += data
            whole = True
            return HeldBody(bytes(read), budget, len(read))
    finally:
        if not whole:
            budget.held_bytes -= len(read)
    reason = f"the request's body was not whole after {BODY_S:.0f} s, and only a whole one can be approved"
    raise CannotAskError(408, reason)


def _too_large(size: str) -> CannotAskError:
    return CannotAskError(
        413,
        f"the request's body {size}, and at most {BODY_BYTES_MAX} can be approved: split the change",
    )


def _budget_full(budget: BodyBudget) -> CannotAskError:
    return CannotAskError(
        503,
        f"the calls that wait for an approval hold {budget.held_bytes} bytes of bodies, and the hub keeps at "
        f"most {budget.bytes_max} (1/{MEMORY_SHARE} of memory_mib): repeat the command later",
    )
