"""Live calls without a client and a relay."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import attrs
import trio

from auth.principal import Principal
from proxy.exchange.ports import Inbound
from proxy.hub.authorize.admission import Call
from proxy.hub.calls.live import Ending, LiveCall
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.store.entities import Agent, AgentState
from proxy.message.failure import Failure

REVOKED = Ending(CloseReason.REVOKED, "agent:ann is locked")


@attrs.define(eq=False)
class FakeSides:
    """Both sides of an exchange; it records how a live call ends them."""

    abandoned: list[Failure | None] = attrs.Factory(list)
    cuts: list[Failure] = attrs.Factory(list)
    on_abandon: Callable[[], None] = lambda: None

    async def abandon(self, failure: Failure | None = None) -> None:
        self.on_abandon()
        self.abandoned.append(failure)
        await trio.lowlevel.checkpoint()

    async def cut(self, failure: Failure) -> None:
        self.cuts.append(failure)
        await trio.lowlevel.checkpoint()


def agent(name: str = "ann") -> Principal:
    """The principal of an agent."""
    return Principal(name, name, "acme", ("sre",))


def enrolled(who: Principal) -> Agent:
    """The entry of this agent in the store."""
    return Agent(who.agent_id, who.name, "o", AgentState.ACTIVE, who.teams, frozenset({"t"}), 0.0, None, who)


def live_call(number: int = 1, who: Principal | None = None) -> tuple[LiveCall, FakeSides]:
    """A live call of an agent, and the sides that end with it."""
    sides = FakeSides()
    call = Call(None, None, None, None, enrolled(who or agent()), None, "", None)  # type: ignore[arg-type]
    return LiveCall(call, f"eid-{number}", cast(Inbound, sides), 0.0), sides
