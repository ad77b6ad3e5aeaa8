"""Live calls without a client and a relay."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import cast

import attrs

from auth.principal import Principal
from proxy.exchange.client_port import ClientPort
from proxy.exchange.engine import Exchange
from proxy.exchange.server import ServerConnection
from proxy.hub.authorize.admission import Call
from proxy.hub.calls.live import Ending, LiveCall
from proxy.hub.calls.outcome import CloseReason
from proxy.hub.calls.relay_port import RelaySide
from proxy.hub.store.entities import Agent, AgentState
from proxy.message.failure import Failure
from tests.proxy.exchange.fake_ports import FakePort

REVOKED = Ending(CloseReason.REVOKED, "agent:ann is locked")


@attrs.define(eq=False, repr=False)
class FakeSide(FakePort):
    """A port with the attributes that a live call reads; it notes each cut."""

    bytes_delivered: int = 0
    bytes_passed: int = 0
    bytes_dropped: int = 0
    cutting: bool = False
    cuts: list[tuple[Failure, bool]] = attrs.Factory(list)
    on_cut: Callable[[], None] = lambda: None

    def cut(self, failure: Failure, drop: bool) -> None:
        self.cuts.append((failure, drop))
        self.on_cut()
        super().cut(failure, drop)


def agent(name: str = "ann") -> Principal:
    """The principal of an agent."""
    return Principal(name, name, "acme", ("sre",))


def enrolled(who: Principal) -> Agent:
    """The entry of this agent in the store."""
    return Agent(who.agent_id, who.name, "o", AgentState.ACTIVE, who.teams, frozenset({"t"}), 0.0, who)


def live_call(number: int = 1, who: Principal | None = None) -> LiveCall:
    """A live call of an agent, without an exchange."""
    call = Call(None, None, None, None, enrolled(who or agent()), None, "", None)  # type: ignore[arg-type]
    return LiveCall(call, f"eid-{number}", cast(ServerConnection, None), 0.0, time.monotonic())


def exchanging_call(number: int = 1, *, begun: bool = False) -> tuple[LiveCall, FakeSide, FakeSide]:
    """A live call whose exchange has started, with its client and its relay; the answer may have begun."""
    live, client, relay = live_call(number), FakeSide(), FakeSide()
    live.exchange = Exchange(client, relay, lambda _: None)
    live.ports = cast(ClientPort, client), cast(RelaySide, relay)
    live.exchange.start()
    if begun:
        relay.say(b"", False, 200)
        live.tally.status = 200
    return live, client, relay
