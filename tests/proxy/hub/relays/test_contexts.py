from __future__ import annotations

import attrs
import pytest
import trio

from auth.principal import Principal
from proxy.exchange.groups import HUB_GROUP, group_of
from proxy.hub.relays import contexts
from proxy.hub.relays.contexts import RENEW_AFTER_S, TokenContexts
from tests.proxy.hub.calls.sessions import session_pair
from tests.tunnel.trio_stream import TrioStream, accept
from tunnel import Session

ANN = Principal("agent-1", "ann", "acme", ("sre",))
BOB = Principal("agent-2", "bob", "acme", ("web",))


@attrs.define
class Mint:
    """Numbers its tokens, so that they are distinct."""

    count: int = 0

    def __call__(self, principal: Principal) -> str:
        self.count += 1
        return f"{principal.name}-{self.count}"


async def accepted_payload(hub: Session, relay: Session, index: int) -> tuple[int, bytes]:
    """The group and payload under which the relay sees a stream that was opened with the context."""
    stream = TrioStream(hub.open_stream(b"head", context=index))
    accepted = await accept(relay)
    await accepted.aclose()
    await stream.aclose()
    return accepted.context.group, bytes(accepted.context.payload)


async def test_a_token_is_minted_once_and_named_by_every_stream() -> None:
    async with session_pair() as (hub, relay):
        mint = Mint()
        table = TokenContexts(hub, mint, tuple)
        first = table.context_for(ANN, now=0.0).index
        # Each change of the directory creates its agents again.
        assert table.context_for(attrs.evolve(ANN), now=RENEW_AFTER_S - 0.1).index == first
        assert mint.count == 1
        assert await accepted_payload(hub, relay, first) == (group_of(ANN.agent_id), b"ann-1")


async def test_a_token_is_renewed_in_time_in_its_agents_group() -> None:
    async with session_pair() as (hub, relay):
        table = TokenContexts(hub, Mint(), tuple)
        first = table.context_for(ANN, now=0.0).index
        table.context_for(BOB, now=0.0)
        second = table.context_for(ANN, now=RENEW_AFTER_S).index
        assert second != first
        assert await accepted_payload(hub, relay, second) == (group_of(ANN.agent_id), b"ann-3")


async def test_changed_teams_take_effect_at_once() -> None:
    async with session_pair() as (hub, _):
        table = TokenContexts(hub, Mint(), tuple)
        first = table.context_for(ANN, now=0.0).index
        assert table.context_for(attrs.evolve(ANN, teams=("sre", "web")), now=1.0).index != first


async def test_a_clock_that_is_set_back_makes_no_token_young() -> None:
    async with session_pair() as (hub, _):
        table = TokenContexts(hub, Mint(), tuple)
        first = table.context_for(ANN, now=3600.0).index
        assert table.context_for(ANN, now=0.0).index != first


async def test_renew_mints_at_any_age() -> None:
    async with session_pair() as (hub, _):
        table = TokenContexts(hub, Mint(), tuple)
        assert table.context_for(ANN, now=0.0).index != table.renew(ANN, now=0.1).index


async def test_the_agents_of_a_session_are_bounded_and_none_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contexts, "AGENTS_PER_SESSION_MAX", 2)
    async with session_pair() as (hub, relay):
        mint = Mint()
        table = TokenContexts(hub, mint, tuple)
        for number in range(10):
            principal = Principal(f"agent-{number}", f"n{number}", "acme", ("sre",))
            index = table.context_for(principal, now=float(number)).index
            assert (await accepted_payload(hub, relay, index))[1] == f"n{number}-{number + 1}".encode()
        await trio.testing.wait_all_tasks_blocked()


async def test_the_time_is_announced_before_a_token_unless_it_was_lately() -> None:
    async with session_pair() as (hub, relay):
        heard: list[tuple[int, bytes]] = []
        told = iter(range(100))
        table = TokenContexts(hub, Mint(), tuple, lambda: f"time-{next(told)}")
        relay.on_context(lambda context: heard.append((context.group, bytes(context.payload))))
        table.announce(0.0)
        # Lately; then by its age, by a clock that was set back, and since the relay refused the token.
        for principal, now in ((ANN, 1.0), (ANN, RENEW_AFTER_S + 1), (BOB, RENEW_AFTER_S)):
            await accepted_payload(hub, relay, table.context_for(principal, now).index)
        await accepted_payload(hub, relay, table.renew(BOB, RENEW_AFTER_S).index)
        ann, bob = group_of(ANN.agent_id), group_of(BOB.agent_id)
        assert heard == [
            (HUB_GROUP, b"time-0"),
            (ann, b"ann-1"),
            (HUB_GROUP, b"time-1"),
            (ann, b"ann-2"),
            (HUB_GROUP, b"time-2"),
            (bob, b"bob-3"),
            (HUB_GROUP, b"time-3"),
            (bob, b"bob-4"),
        ]
        # The last one, and each agent's token.
        assert len(hub._connection.contexts.own) == 3


async def test_a_relay_hears_of_a_key_before_the_first_token_by_it() -> None:
    async with session_pair() as (hub, relay):
        heard: list[tuple[int, bytes]] = []
        succession: tuple[str, ...] = ("first",)
        table = TokenContexts(hub, Mint(), lambda: succession)
        table.announce(0.0)
        relay.on_context(lambda context: heard.append((context.group, bytes(context.payload))))
        await accepted_payload(hub, relay, table.context_for(ANN, now=0.0).index)
        succession = ("first", "second")
        await accepted_payload(hub, relay, table.context_for(BOB, now=0.0).index)
        # Long after, the oldest is forgotten: nothing is said twice.
        succession = ("second", "third")
        table.announce(0.0)
        await accepted_payload(hub, relay, table.context_for(ANN, now=1.0).index)
        assert heard == [
            (HUB_GROUP, b"first"),
            (group_of(ANN.agent_id), b"ann-1"),
            (HUB_GROUP, b"second"),
            (group_of(BOB.agent_id), b"bob-2"),
            (HUB_GROUP, b"third"),
        ]
