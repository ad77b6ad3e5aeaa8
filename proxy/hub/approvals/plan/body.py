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
# Of that, an agent has at most one such part: its slow bodies must not refuse those of others.
AGENT_SHARE: Final = 2
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
    _by_agent: dict[str, int] = attrs.field(init=False, factory=dict)
    _limiter: trio.CapacityLimiter = attrs.field(init=False, factory=lambda: trio.CapacityLimiter(_THREADS))

    @classmethod
    def of(cls, memory: Memory) -> Self:
        """Return the budget for a hub with this memory: one MEMORY_SHARE of it."""
        return cls(memory.limit_bytes // MEMORY_SHARE)

    def hold(self, agent_id: str, count: int) -> None:
        """Count so many bytes more; raises CannotAskError if they are too many."""
        of_agent = self._by_agent.get(agent_id, 0)
        if self.held_bytes + count > self.bytes_max:
            raise _full("all agents", self.held_bytes, self.bytes_max)
        if of_agent + count > self.bytes_max // AGENT_SHARE:
            raise _full("this agent", of_agent, self.bytes_max // AGENT_SHARE)
        self.held_bytes += count
        self._by_agent[agent_id] = of_agent + count

    def drop(self, agent_id: str, count: int) -> None:
        """Count so many bytes less."""
        self.held_bytes -= count
        left = self._by_agent.pop(agent_id, 0) - count
        if left:
            self._by_agent[agent_id] = left

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
    _agent_id: str

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Drop the body, and give its memory back to the budget; idempotent."""
        self._budget.drop(self._agent_id, len(self.data))
        self.data = b""


async def read_body(
    connection: BodySource, length: int | None, budget: BodyBudget, agent_id: str
) -> HeldBody:
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
                budget.hold(agent_id, len(data))
                read += data
            whole = True
            return HeldBody(bytes(read), budget, agent_id)
    finally:
        if not whole:
            budget.drop(agent_id, len(read))
    reason = f"the request's body was not whole after {BODY_S:.0f} s, and only a whole one can be approved"
    raise CannotAskError(408, reason)


def _too_large(size: str) -> CannotAskError:
    return CannotAskError(
        413,
        f"the request's body {size}, and at most {BODY_BYTES_MAX} can be approved: split the change",
    )


def _full(whose: str, held_bytes: int, bytes_max: int) -> CannotAskError:
    return CannotAskError(
        503,
        f"the calls of {whose} that wait for an approval hold {held_bytes} bytes of bodies, and the hub "
        f"keeps at most {bytes_max} of them (a part of memory_mib): repeat the command later",
    )
