"""How many calls wait at once, of an agent and of the hub, and which call waits for a plan."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

import attrs
import trio

# Held calls of an agent. Each holds a connection and a body, and is one more request for an approver.
HELD_PER_AGENT_MAX: Final = 8
# Of a hub: with a body of 1 MiB each, they would take an eighth of 4 GiB (`BodyBudget` bounds them).
HELD_MAX: Final = 512
# kubectl repeats a refused upgrade over SPDY at once (client-go's fallback). It must not wait twice.
TWIN_S: Final = 5.0


class NoSlotError(Exception):
    """The call cannot wait; the text says why."""


class PlanHeldError(Exception):
    """Another call with this plan waits already."""


@attrs.define(eq=False)
class Slot:
    """A call's part of the bounds, from `take` until the context ends."""

    _slots: Slots
    key: tuple[str, str]
    """The agent's id and the plan."""
    taken: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.taken:
            self._slots.free(self)

    def take(self) -> None:
        """Count the call as held, once; raises NoSlotError and PlanHeldError."""
        if not self.taken:
            self._slots.take(self)


@attrs.define(eq=False)
class Slots:
    """The held calls of a hub."""

    _held: dict[tuple[str, str], Slot] = attrs.Factory(dict)
    _by_agent: dict[str, int] = attrs.Factory(dict)
    # When an upgrade's wait for a request was over, on trio's clock. The oldest is first.
    _timed_out: dict[str, float] = attrs.Factory(dict)

    @property
    def count(self) -> int:
        """How many calls are held."""
        return len(self._held)

    def slot(self, agent_id: str, plan: str) -> Slot:
        """Return the slot of a call; a context, which frees it."""
        return Slot(self, (agent_id, plan))

    def take(self, slot: Slot) -> None:
        """See Slot."""
        agent_id = slot.key[0]
        if slot.key in self._held:
            raise PlanHeldError
        if self._by_agent.get(agent_id, 0) >= HELD_PER_AGENT_MAX:
            raise NoSlotError(f"{HELD_PER_AGENT_MAX} calls of this agent wait for an approval already")
        if self.count >= HELD_MAX:
            raise NoSlotError(f"{HELD_MAX} calls wait for an approval at this hub already")
        self._held[slot.key] = slot
        self._by_agent[agent_id] = self._by_agent.get(agent_id, 0) + 1
        slot.taken = True

    def free(self, slot: Slot) -> None:
        """See Slot."""
        slot.taken = False
        del self._held[slot.key]
        agent_id = slot.key[0]
        self._by_agent[agent_id] -= 1
        if not self._by_agent[agent_id]:
            del self._by_agent[agent_id]

    def time_out(self, request_id: str) -> None:
        """Note that an upgrade has waited for a request until its time was over."""
        self._forget_old()
        self._timed_out.pop(request_id, None)
        self._timed_out[request_id] = trio.current_time()

    def is_twin(self, request_id: str) -> bool:
        """Return whether an upgrade waited for this request a moment ago: over WebSocket, before SPDY."""
        self._forget_old()
        return request_id in self._timed_out

    def _forget_old(self) -> None:
        since = trio.current_time() - TWIN_S
        while self._timed_out and (oldest := next(iter(self._timed_out.items())))[1] < since:
            del self._timed_out[oldest[0]]
