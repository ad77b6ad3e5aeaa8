from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.lowlevel
import trio.testing

from auth.hubclock import read_time
from auth.jws import TokenError
from auth.keys import SigningKey
from auth.tokens import issue_hello
from proxy.hub.relays.endpoint import CLUSTER_REMOVED
from proxy.hub.store.directory import Directory
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.entities import Mode
from proxy.hub.store.store import Store
from proxy.message.head import RequestHead
from tests.proxy.hub.calls.sessions import session_pair
from tests.proxy.hub.relays.endpoint_bench import NOW, Bench, claims, open_bench
from tests.tunnel.trio_stream import TrioStream
from tunnel import (
    CloseCode,
    Hello,
    Rejected,
    Role,
    Session,
    StreamCode,
    StreamReset,
    TooManyStreams,
    Transport,
    TransportClosed,
    hear_hello,
    memory_transport_pair,
    open_session,
)
from tunnel.protocol import frames, greetings


async def farewell(relay: Session) -> tuple[int, str]:
    """Code and reason of the hub's last GOAWAY, as its relay has them."""
    await relay.wait_closed()
    goaway = relay.peer_going_away
    assert goaway is not None
    return goaway.code, goaway.reason


async def test_a_relay_shows_one_bearer_token_and_only_where_relays_dial(tmp_path: Path) -> None:
    key = SigningKey.generate()
    async with open_bench(tmp_path) as bench:
        edge = await bench.directory.change(
            lambda store: store.add_cluster(
                "edge", teams=[], relay_key=key.public, mode=Mode.DIRECT, relay_url="https://relay.example"
            )
        )
        hello = issue_hello(
            key, cluster_id=edge, hub_url="https://hub.example", instance="relay-1", jti="j", now=NOW
        )
        bearer = b"Bearer " + hello.encode("ascii")
        for shown, why in (
            ((), "one bearer token"),
            ((b"Basic " + hello.encode("ascii"),), "one bearer token"),
            ((bearer, bearer), "one bearer token"),
            ((bearer,), "its relay does not dial"),
        ):
            lines = tuple((b"authorization", value) for value in shown)
            head = RequestHead.of(b"GET", b"/v1/tunnel", lines)
            with pytest.raises(TokenError, match=why):
                await bench.auth.authenticate(head, NOW, bench.auth.limit.arrive(), "192.0.2.9")


@pytest.mark.parametrize("other", [{"instance": "relay-2"}, {"cluster": "c2"}])
async def test_a_hello_that_names_another_relay_than_its_token_is_rejected(
    tmp_path: Path, other: dict[str, str]
) -> None:
    async with open_bench(tmp_path) as bench:
        own = Hello(cluster="c1", instance="relay-1")
        assert bench.endpoint._welcome(bench.dial(claims("j")), own).session_id == "id"
        with pytest.raises(Rejected, match="another relay than the token") as rejected:
            bench.endpoint._welcome(bench.dial(claims("j")), attrs.evolve(own, **other))
        assert rejected.value.close_code == CloseCode.FORBIDDEN


async def test_each_end_of_a_relays_session_is_an_event(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, session_pair() as (first, told), session_pair() as (second, _):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as superseded:
                await bench.keep(first, superseded)
                await bench.keep(second, nursery)
            assert await farewell(told) == (4409, "superseded by a newer connection of the same relay")
            # As the hub does when it stops.
            nursery.cancel_scope.cancel()
        assert sorted(await bench.trail()) == [
            ("relay.connected", ""),
            ("relay.connected", ""),
            ("relay.disconnected", "ended by the hub"),
            ("relay.disconnected", "superseded by a newer connection of the same relay"),
            (
                "relay.new",
                "an instance that was not seen before; an address that was not seen before (known: none)",
            ),
        ]
        assert list(bench.endpoint.registry.relays()) == []


@pytest.mark.parametrize(
    ("change", "code", "why"),
    [
        (
            lambda store: store.remove_cluster("prod"),
            4403,
            CLUSTER_REMOVED,
        ),
        (
            lambda store: store.replace_relay_key("prod", SigningKey.generate().public, keep_old=False),
            4401,
            "its key was replaced: apply the manifests that `hawse admin cluster key` has printed",
        ),
    ],
)
async def test_a_relay_whose_right_to_be_here_is_taken_back_is_sent_away(
    tmp_path: Path, change: Callable[[Store], object], code: int, why: str
) -> None:
    async with open_bench(tmp_path) as bench, session_pair() as (session, relay):
        bench.directory.on_change(bench.endpoint.end_revoked)
        async with trio.open_nursery() as nursery:
            await bench.keep(session, nursery)
            new_key = SigningKey.generate().public
            await bench.directory.change(
                lambda store: store.replace_relay_key("prod", new_key, keep_old=True)
            )
            assert len(list(bench.endpoint.registry.relays())) == 1
            await bench.directory.change(change)
        assert (await bench.trail())[-1] == ("relay.disconnected", why)
        assert await farewell(relay) == (code, why)


async def test_a_relay_is_sent_away_while_its_coming_is_still_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bench(tmp_path) as bench, session_pair() as (session, relay):
        bench.directory.on_change(bench.endpoint.end_revoked)
        written = trio.Event()

        async def read_late(directory: Directory, read: Callable[[Store], object]) -> None:
            await written.wait()

        monkeypatch.setattr(Directory, "read", read_late)
        async with trio.open_nursery() as nursery:
            await bench.keep(session, nursery)
            (live,) = bench.endpoint.registry.relays()
            assert live.usable
            await bench.directory.change(lambda store: store.remove_cluster("prod"))
            # Or agents' calls would go on to it for as long as the store takes.
            assert not live.usable
            with trio.fail_after(2):
                assert await farewell(relay) == (4403, CLUSTER_REMOVED)
            written.set()
        assert (await bench.trail())[-1] == ("relay.disconnected", CLUSTER_REMOVED)


async def test_a_relay_that_dialled_while_its_cluster_was_removed_does_not_stay(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, session_pair() as (session, _):
        cluster = bench.directory.current.clusters_by_name["prod"]
        hello = claims("a", cluster=cluster.id, kid=cluster.relay_keys[0].kid)
        await bench.directory.change(lambda store: store.remove_cluster("prod"))
        with trio.fail_after(2):
            await bench.endpoint._keep(session, hello, cluster, "192.0.2.9:1")
        assert (await bench.trail())[-1] == ("relay.disconnected", CLUSTER_REMOVED)


async def test_a_relay_above_the_limit_gets_the_reason_and_is_recorded(tmp_path: Path) -> None:
    async with (
        open_bench(tmp_path) as bench,
        session_pair() as (first, _),
        session_pair() as (second, _),
        session_pair() as (third, refused),
    ):
        async with trio.open_nursery() as nursery:
            await bench.keep(first, nursery, instance="a")
            await bench.keep(second, nursery, instance="b", address="198.51.100.7")
            cluster = bench.directory.current.clusters_by_name["prod"]
            hello = claims("x", cluster=cluster.id, kid=cluster.relay_keys[0].kid, instance="c")
            with trio.fail_after(5):
                await bench.endpoint._keep(third, hello, cluster, "203.0.113.9")
                reason = await refused.wait_closed()
            assert "cluster prod has 2 relays here (a, b), the limit is 2" in reason
            assert {relay.instance for relay in bench.endpoint.registry.relays()} == {"a", "b"}
            # Behind what the two have noted.
            await bench.directory.read(lambda store: store.clusters_seen(0))
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        trail = await bench.trail()
        (note,) = [note for kind, note in trail if kind == "relay.refused"]
        assert note in reason
        assert [note for kind, note in trail if kind == "relay.new"] == [
            "an instance that was not seen before; an address that was not seen before (known: none)",
            "an instance that was not seen before; an address that was not seen before (known: 192.0.2.9)",
        ]


@asynccontextmanager
async def dialled(bench: Bench, instance: str = "relay-1") -> AsyncIterator[tuple[Transport, Hello]]:
    """A relay's end of a transport by which its hub awaits HELLO, and that word."""
    here, there = memory_transport_pair()
    cluster = bench.directory.current.clusters_by_name["prod"]
    hello = claims("a", cluster=cluster.id, kid=cluster.relay_keys[0].kid, instance=instance)

    async def listen() -> None:
        await bench.endpoint._begin(here, await hear_hello(here), bench.dial(hello), None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        yield there, Hello(instance=instance, cluster=cluster.id)


@asynccontextmanager
async def relay_of(bench: Bench, instance: str = "relay-1", statement: str = "") -> AsyncIterator[Session]:
    """A relay's end of a session that its hub has begun."""
    async with dialled(bench, instance) as (there, word):
        with trio.fail_after(5):
            hello = attrs.evolve(word, statement=statement)
            async with open_session(there, Role.DIALER, hello=hello) as relay:
                yield relay


@pytest.mark.parametrize("nonce", ["", "0123456789abcdef" * 2])
async def test_a_relay_hears_the_hubs_time_for_its_nonce_before_all_else(tmp_path: Path, nonce: str) -> None:
    """One from before nonces hears nothing of the kind."""
    async with open_bench(tmp_path) as bench, dialled(bench) as (there, word):
        before_s = time.time()
        async with open_session(there, Role.DIALER, hello=attrs.evolve(word, nonce=nonce)) as relay:
            heard: list[bytes] = []
            relay.on_context(lambda context: heard.append(bytes(context.payload)))
            await trio.testing.wait_all_tasks_blocked(0.01)
        if not nonce:
            assert heard == []
            return
        [statement] = heard
        told = read_time(
            statement.decode(),
            bench.endpoint.keys().public,
            issuer=bench.endpoint.config.public_url,
            cluster_id=word.cluster,
            nonce=nonce,
        )
        assert before_s - 1 <= told.at <= time.time()
        assert told.hub == bench.endpoint.boot


async def test_streams_that_a_relay_opens_are_refused_and_take_no_memory(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, relay_of(bench) as relay:
        context = relay.add_context(1, b"x")
        stream = TrioStream(relay.open_stream(b"head", context=context))
        # Nor may it bring many, each without an end to its head.
        with pytest.raises(TooManyStreams):
            relay.open_stream(b"head", context=context)
        stream.send_nowait(bytes(10_000))
        with pytest.raises(StreamReset) as caught:
            await stream.receive_head()
        assert caught.value.code is StreamCode.REFUSED
        assert bench.endpoint.memory.used_bytes <= len(b"x")


async def test_a_relay_that_opens_streams_and_never_listens_is_sent_away(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench, dialled(bench) as (relay, word):
        await relay.send(greetings.hello(word))
        await relay.receive()
        opens = (frames.open_prefix(number, 1, 0, 0, 0) for number in range(1, 3001, 2))
        await relay.send(b"".join(opens))

        async def read_all() -> None:
            while True:
                await relay.receive()

        with trio.fail_after(5), pytest.raises(TransportClosed) as caught:
            await read_all()
        assert caught.value.code == CloseCode.LIMITS
        assert "RESETs are not acknowledged" in caught.value.reason


async def test_a_relay_whose_contexts_fill_its_hubs_memory_is_sent_away(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        async with relay_of(bench) as relay:
            for _ in range(17):
                relay.add_context(1, bytes(8 * 1024))
            assert "more than 16 live contexts" in await relay.wait_closed()
        # Nothing of it is left.
        assert bench.endpoint.memory.used_bytes == 0


# -- which Kubernetes cluster a relay is in ------------------------------------------------------------------


@asynccontextmanager
async def pinning(folder: Path) -> AsyncIterator[Bench]:
    """A bench whose endpoint runs, as in a hub."""
    async with open_bench(folder) as bench, trio.open_nursery() as nursery:
        bench.directory.on_change(bench.endpoint.end_revoked)
        nursery.start_soon(bench.endpoint.run)
        yield bench
        nursery.cancel_scope.cancel()


def pin(bench: Bench) -> str | None:
    return bench.directory.current.clusters_by_name["prod"].cluster_uid


def here(bench: Bench) -> set[str]:
    return {relay.instance for relay in bench.endpoint.registry.relays()}


def api_servers(bench: Bench) -> list[bool | None]:
    """What the relays that are here have stated of them last."""
    return [relay.statement.api_server for relay in bench.endpoint.registry.relays()]


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a store's thread decides it, which sets no event
            await trio.sleep(0.001)


async def refused(bench: Bench, instance: str, statement: str) -> tuple[int, str]:
    """How a relay that states this is sent away, in the greeting or just behind it."""

    async def read_all(relay: Transport) -> None:
        while True:
            await relay.receive()

    async with dialled(bench, instance) as (relay, word):
        await relay.send(greetings.hello(attrs.evolve(word, statement=statement)))
        with trio.fail_after(5), pytest.raises(TransportClosed) as caught:
            await read_all(relay)
        return caught.value.code or 0, caught.value.reason


async def notes(bench: Bench, kind: str) -> list[str]:
    return [note for each, note in await bench.trail() if each == kind]


async def test_the_first_relay_pins_its_cluster_and_one_in_another_is_refused(tmp_path: Path) -> None:
    async with pinning(tmp_path) as bench, relay_of(bench, "a", "cluster=east api=up"):
        await until(lambda: here(bench) == {"a"})
        assert pin(bench) == "east"
        async with relay_of(bench, "b", "cluster=east"):
            code, reason = await refused(bench, "c", "cluster=west")
            assert code == CloseCode.FORBIDDEN
            assert reason.startswith("wrong cluster: if that is meant, `hawse admin cluster repin prod`")
            await until(lambda: here(bench) == {"a", "b"})
        assert pin(bench) == "east"
        assert await notes(bench, "relay.pinned") == ["kube-system uid=east"]
        (note,) = await notes(bench, "relay.refused")
        assert note.endswith("prod is pinned to kube-system uid east, and this relay is in west")


async def test_of_two_that_come_at_once_one_pins_and_the_other_is_refused(tmp_path: Path) -> None:
    refused: dict[str, int] = {}
    async with pinning(tmp_path) as bench, trio.open_nursery() as nursery:

        async def come(instance: str, cluster: str) -> None:
            try:
                async with relay_of(bench, instance, f"cluster={cluster}") as relay:
                    refused[instance] = (await farewell(relay))[0]
            except* Rejected:
                # The other one was pinned before this one was greeted.
                refused[instance] = CloseCode.FORBIDDEN

        nursery.start_soon(come, "a", "east")
        nursery.start_soon(come, "b", "west")
        await until(lambda: pin(bench) is not None)
        stays, goes = ("a", "b") if pin(bench) == "east" else ("b", "a")
        await until(lambda: refused == {goes: CloseCode.FORBIDDEN} and here(bench) == {stays})
        (note,) = await notes(bench, "relay.refused")
        assert note.startswith("wrong cluster: ")
        nursery.cancel_scope.cancel()


async def test_a_relay_that_states_nothing_is_taken_also_where_a_cluster_is_pinned(tmp_path: Path) -> None:
    async with pinning(tmp_path) as bench, relay_of(bench, "old"):
        await until(lambda: here(bench) == {"old"})
        assert pin(bench) is None
        async with relay_of(bench, "new", "cluster=east"):
            await until(lambda: here(bench) == {"old", "new"})
            assert pin(bench) == "east"
        assert here(bench) == {"old"}


async def test_what_a_relay_learns_later_is_pinned_and_refused_as_well(tmp_path: Path) -> None:
    async with pinning(tmp_path) as bench, relay_of(bench, "a", "api=down") as relay:
        await until(lambda: here(bench) == {"a"})
        relay.add_context(0, b"cluster=east api=up")
        await until(lambda: pin(bench) == "east")
        # What an agent's context is to a hub, a relay's is not: another group says nothing.
        relay.add_context(7, b"cluster=west")
        relay.add_context(0, b"cluster=east api=down")
        await until(lambda: api_servers(bench) == [False])
        relay.add_context(0, b"cluster=west api=up")
        assert (await farewell(relay))[0] == CloseCode.FORBIDDEN
        await until(lambda: not here(bench))
        assert len(await notes(bench, "relay.refused")) == 1


async def test_a_relay_stays_until_another_cluster_is_pinned(tmp_path: Path) -> None:
    async with pinning(tmp_path) as bench, relay_of(bench, "a", "cluster=east") as first:
        await until(lambda: pin(bench) == "east")
        await bench.directory.change(lambda store: store.unpin_cluster("prod"))
        # It says no more than it has said; the next that connects decides.
        first.add_context(0, b"cluster=east api=up")
        await until(lambda: api_servers(bench) == [True])
        assert pin(bench) is None
        async with relay_of(bench, "b", "cluster=west"):
            assert (await farewell(first))[0] == CloseCode.FORBIDDEN
            await until(lambda: here(bench) == {"b"})
            assert pin(bench) == "west"


@pytest.mark.parametrize("said", ["cluster=a/b", "api=no", "cluster=" + "a" * 65])
async def test_a_relay_that_states_what_none_does_is_sent_away(tmp_path: Path, said: str) -> None:
    async with pinning(tmp_path) as bench:
        assert (await refused(bench, "a", said))[0] == CloseCode.FORBIDDEN
        async with relay_of(bench, "b") as relay:
            await until(lambda: here(bench) == {"b"})
            relay.add_context(0, said.encode())
            assert (await farewell(relay))[0] == CloseCode.FORBIDDEN
        assert len(await notes(bench, "relay.refused")) == 2
        assert pin(bench) is None


async def test_a_relay_that_is_sent_away_for_one_statement_is_asked_for_no_other(tmp_path: Path) -> None:
    """They come in one message, and each would be an event of the trail."""
    async with pinning(tmp_path) as bench, relay_of(bench, "a", "cluster=east") as relay:
        await until(lambda: here(bench) == {"a"})
        for _ in range(10):
            relay.add_context(0, b"api=no")
        assert (await farewell(relay))[0] == CloseCode.FORBIDDEN
        await until(lambda: not here(bench))
        assert len(await notes(bench, "relay.refused")) == 1


async def test_statements_without_end_hold_nothing(tmp_path: Path) -> None:
    async with pinning(tmp_path) as bench, relay_of(bench, "a", "cluster=east") as relay:
        await until(lambda: here(bench) == {"a"})
        last = None
        for number in range(300):
            context = relay.add_context(0, b"api=up" if number % 2 else b"api=down")
            if last is not None:
                relay.retire_context(last)
            last = context
            await trio.lowlevel.checkpoint()
        await until(lambda: api_servers(bench) == [True])
        assert bench.endpoint.memory.used_bytes < 1024
        assert await notes(bench, "relay.refused") == []


async def test_a_store_that_is_down_costs_the_pin_and_not_the_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(store: Store, cluster_id: str, uid: str) -> str:
        raise StoreUnavailableError("the disk is full")

    monkeypatch.setattr(Store, "pin_cluster", fail)
    async with pinning(tmp_path) as bench, relay_of(bench, "a", "cluster=east"):
        await until(lambda: here(bench) == {"a"})
        assert pin(bench) is None
        assert "cannot pin cluster prod: the disk is full" in caplog.text


async def test_no_session_begins_when_the_hub_may_not_decide_any_more_after_the_dial(tmp_path: Path) -> None:
    async with open_bench(tmp_path) as bench:
        hello = Hello(cluster="c1", instance="relay-1")
        bench.directory.age.withhold("the database is away")
        with pytest.raises(Rejected, match="the database is away") as rejected:
            bench.endpoint._welcome(bench.dial(claims("j")), hello)
        # The relay dials again.
        assert rejected.value.close_code == CloseCode.DRAINING
