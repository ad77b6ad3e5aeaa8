"""Forwarded calls over two real sessions: what passes, what is refused, and what ends them."""

from __future__ import annotations

import time

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from auth.principal import Principal
from proxy.hub.hop.forwarded import JUDGED_LATER_S, VERSION_WAIT_S, WAITING_MAX
from proxy.hub.store.entities import AgentState
from tests.proxy.hub.hop.bench import AGENT, agent, cluster, open_hubs
from tests.tunnel.trio_stream import TrioStream, accept, accept_nowait
from tunnel import Processed, StreamCode, StreamReset

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


async def all_of(stream: TrioStream) -> bytes:
    received = b""
    while data := await stream.receive_some():
        received += data
    return received


async def answer_of(stream: TrioStream) -> bytes:
    """The head and all bytes of an answer; raises StreamReset."""
    return await stream.receive_head() + await all_of(stream)


async def refusal_of(stream: TrioStream) -> StreamReset:
    with pytest.raises(StreamReset) as caught:
        await stream.receive_head()
    return caught.value


async def test_a_read_passes_with_its_answer_whole() -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams(b"GET", eof=True)
        assert served.head == b"GET"
        assert served.raw.at_end
        assert served.context.payload == b"token-1"
        served.send_answer_nowait(HEAD, b"body", eof=True)
        assert await opened.receive_head() == HEAD
        assert await all_of(opened) == b"body"
        await wait_all_tasks_blocked()
        assert (hubs.forwarded.count, hubs.forwarded.begun) == (0, 1)
        assert hubs.relay.session.stream_count == 0
        opened.close_nowait()
        await wait_all_tasks_blocked()
        assert hubs.route.session.stream_count == 0


async def test_a_body_passes_both_ways_byte_for_byte_behind_any_head() -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        up, down = bytes(range(256)) * 5000, bytes(reversed(range(256))) * 5000

        async def send() -> None:
            await opened.send_all(up)
            await opened.send_eof()

        async def echo() -> None:
            assert await all_of(served) == up
            await served.send_head(b"a head in no known form")
            await served.send_all(down)
            await served.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(echo)
            assert await opened.receive_head() == b"a head in no known form"
            assert await all_of(opened) == down
        await wait_all_tasks_blocked()
        assert hubs.forwarded.count == 0


async def test_each_direction_ends_by_itself() -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        await served.send_head(HEAD, eof=True)
        await opened.receive_head()
        assert await all_of(opened) == b""
        await opened.send_all(b"after the answer")
        await opened.send_eof()
        assert await all_of(served) == b"after the answer"
        await wait_all_tasks_blocked()
        assert hubs.forwarded.count == 0


@pytest.mark.parametrize("in_line", [True, False])
@pytest.mark.parametrize("answered", [True, False])
async def test_the_relays_reset_passes_with_all_that_it_says(answered: bool, in_line: bool) -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams(eof=True)
        if answered:
            served.send_answer_nowait(HEAD, b"part")
            await wait_all_tasks_blocked()
        served.reset(StreamCode.TIMEOUT, processed=Processed.YES, reason="too slow", in_line=in_line)
        await wait_all_tasks_blocked()
        if answered and in_line:
            assert await opened.receive_head() == HEAD
            assert await opened.receive_some() == b"part"
        with pytest.raises(StreamReset) as caught:
            await answer_of(opened)
        reset = caught.value
        assert (reset.code, reset.processed, reset.reason) == (StreamCode.TIMEOUT, Processed.YES, "too slow")
        failure = opened.raw.failure
        assert failure is not None
        assert failure.in_line is (in_line or not answered)
        assert hubs.forwarded.count == 0


async def test_the_relays_reset_passes_while_the_answer_waits_for_room() -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams(eof=True)
        await served.send_head(HEAD)
        with trio.move_on_after(0.2):
            # The first hub takes nothing.
            await served.send_all(bytes(16 * 1024 * 1024))
        served.reset(StreamCode.REVOKED, reason="locked")
        await wait_all_tasks_blocked()
        failure = opened.raw.failure
        assert failure is not None
        assert (failure.code, failure.in_line) == (StreamCode.REVOKED, False)


async def test_the_first_hubs_reset_reaches_the_relay() -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        opened.reset(StreamCode.DEADLINE, processed=Processed.MAYBE, reason="its time is over")
        await wait_all_tasks_blocked()
        failure = served.raw.failure
        assert failure is not None
        assert (failure.code, failure.reason) == (StreamCode.DEADLINE, "its time is over")
        assert hubs.forwarded.count == 0


async def test_a_relay_that_takes_no_more_of_an_upload_ends_it_behind_its_answer() -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        await opened.send_all(b"part")
        served.send_answer_nowait(b"HTTP/1.1 413 No\r\n\r\n", b"", eof=True)
        served.close_nowait()
        assert await opened.receive_head() == b"HTTP/1.1 413 No\r\n\r\n"
        assert await all_of(opened) == b""
        await wait_all_tasks_blocked()
        assert opened.broken
        assert hubs.forwarded.count == 0


@pytest.mark.parametrize("answered", [True, False])
async def test_a_link_that_is_lost_cuts_what_passes_and_ends_nothing_cleanly(answered: bool) -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        await opened.send_all(b"part of an upload")
        if answered:
            await served.send_head(HEAD)
        await wait_all_tasks_blocked()
        hubs.link.cut()
        await wait_all_tasks_blocked()
        with pytest.raises(StreamReset):
            await all_of(served)
        with pytest.raises(StreamReset):
            await answer_of(opened)
        assert hubs.forwarded.count == 0


async def test_a_tunnel_that_is_lost_cuts_what_passes() -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        await served.send_head(HEAD)
        await wait_all_tasks_blocked()
        hubs.relay.session.end(None, "lost")
        assert await opened.receive_head() == HEAD
        with pytest.raises(StreamReset) as caught:
            await opened.receive_some()
        assert caught.value.code is StreamCode.DETACH_EXPIRED
        assert hubs.forwarded.count == 0


async def test_a_call_to_a_session_that_has_left_is_refused_unprocessed() -> None:
    async with open_hubs() as hubs:
        hubs.relay.session.end(None, "lost")
        reset = await refusal_of(hubs.open())
        assert (reset.code, reset.processed) == (StreamCode.REFUSED, Processed.NO)


@pytest.mark.parametrize(
    ("entities", "why"),
    [
        ((cluster(),), "the agent of this call was removed"),
        ((agent(),), "the cluster of this call was removed"),
        ((agent(state=AgentState.LOCKED), cluster()), "agent:claude is locked"),
        ((agent(teams=("ops",)), cluster(("dev", "ops"))), "agent:claude is no longer in main/dev"),
        ((agent(), cluster(("ops",))), 'cluster "prod" is not granted'),
    ],
)
async def test_a_change_here_refuses_calls_and_ends_those_that_the_first_hub_has_not_ended(
    entities: tuple[object, ...], why: str, autojump_clock: MockClock
) -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        await served.send_head(HEAD)
        await opened.receive_head()
        hubs.change(*entities)  # type: ignore[arg-type]
        began = trio.current_time()
        reset = await refusal_of(hubs.open())
        assert (reset.code, reset.processed) == (StreamCode.REVOKED, Processed.NO)
        assert reset.reason.startswith(why)
        assert not opened.broken
        with pytest.raises(StreamReset) as caught:
            await opened.receive_some()
        assert caught.value.code is StreamCode.REVOKED
        assert caught.value.reason.startswith(why)
        assert trio.current_time() - began <= JUDGED_LATER_S + 0.01
        with pytest.raises(StreamReset):
            await served.receive_some()
        assert accept_nowait(hubs.there) is None


async def test_another_change_ends_no_call(autojump_clock: MockClock) -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        hubs.change(agent(teams=("dev", "ops")), cluster())
        await trio.sleep(2 * JUDGED_LATER_S)
        await served.send_head(HEAD, eof=True)
        assert await opened.receive_head() == HEAD
        # The first hub has not applied the change, and records the token's teams.
        hubs.open(eof=True)
        await accept(hubs.there)
        assert [principal.teams for principal in hubs.minted] == [("dev",)]


async def test_a_call_has_no_team_that_the_second_hub_does_not_know() -> None:
    async with open_hubs() as hubs:
        reset = await refusal_of(hubs.open(principal=attrs.evolve(AGENT, teams=("dev", "ops"))))
        assert (reset.code, reset.processed) == (StreamCode.REVOKED, Processed.NO)
        assert hubs.minted == []


async def test_a_call_waits_for_the_version_that_the_first_hub_decided_by(autojump_clock: MockClock) -> None:
    async with open_hubs() as hubs:
        hubs.version[0] = 2
        changed = Principal("a1", "claude", "main", ("dev", "ops"))
        opened = hubs.open(principal=changed)
        await wait_all_tasks_blocked()
        assert hubs.forwarded.count == 1
        assert hubs.directory.polls == 1
        await trio.sleep(VERSION_WAIT_S * 0.9)
        hubs.change(agent(teams=("dev", "ops")), cluster())
        served = await accept(hubs.there)
        assert hubs.minted == [changed]
        await served.send_head(HEAD, eof=True)
        assert await opened.receive_head() == HEAD


async def test_a_later_call_of_an_agent_waits_for_the_version_of_its_own_decision(
    autojump_clock: MockClock,
) -> None:
    async with open_hubs() as hubs:
        await hubs.streams(eof=True)
        # No change of the agent: the relay's key may have been revoked.
        hubs.version[0] = 2
        hubs.open(eof=True)
        await wait_all_tasks_blocked()
        assert accept_nowait(hubs.there) is None
        hubs.change(agent(), cluster())
        await accept(hubs.there)


async def test_after_lost_commits_calls_do_not_wait_for_what_is_gone(autojump_clock: MockClock) -> None:
    async with open_hubs() as hubs:
        hubs.version[0] = 5
        hubs.change(agent(), cluster(), number=5)
        await hubs.streams(eof=True)
        hubs.version[0] = 3
        hubs.change(agent(), cluster(), number=3)
        hubs.open(eof=True)
        await wait_all_tasks_blocked()
        assert accept_nowait(hubs.there) is not None


async def test_a_call_does_not_wait_longer_than_that(autojump_clock: MockClock) -> None:
    async with open_hubs() as hubs:
        hubs.version[0] = 3
        began = trio.current_time()
        opened, given_up = hubs.open(), hubs.open()
        await wait_all_tasks_blocked()
        given_up.close_nowait()
        # One version is not enough.
        hubs.change(agent(), cluster())
        reset = await refusal_of(opened)
        assert (reset.code, reset.processed) == (StreamCode.REFUSED, Processed.NO)
        assert trio.current_time() - began == pytest.approx(VERSION_WAIT_S, abs=0.01)
        assert hubs.forwarded.count == 0
        assert hubs.minted == []


async def test_only_so_many_calls_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    assert WAITING_MAX > 2
    monkeypatch.setattr("proxy.hub.hop.forwarded.WAITING_MAX", 2)
    async with open_hubs() as hubs:
        hubs.version[0] = 2
        opened = [hubs.open() for _ in range(3)]
        reset = await refusal_of(opened[2])
        assert (reset.code, reset.processed) == (StreamCode.REFUSED, Processed.NO)
        assert hubs.forwarded.count == 2


async def test_nothing_is_served_by_a_snapshot_that_is_too_old(autojump_clock: MockClock) -> None:
    async with open_hubs() as hubs:
        await trio.sleep(hubs.directory.age.stale_s)
        reset = await refusal_of(hubs.open())
        assert (reset.code, reset.processed) == (StreamCode.REFUSED, Processed.NO)
        assert "cannot confirm its state" in reset.reason


async def test_all_calls_end_when_the_hub_may_serve_none() -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        await served.send_head(HEAD)
        await opened.receive_head()
        assert await hubs.forwarded.end_all("too old") == 1
        with pytest.raises(StreamReset, match="too old"):
            await opened.receive_some()
        with pytest.raises(StreamReset):
            await served.receive_some()
        assert hubs.forwarded.count == 0


async def test_a_refused_token_is_renewed_once_for_all_calls() -> None:
    async with open_hubs() as hubs:
        calls = [await hubs.streams(eof=True) for _ in range(3)]
        assert {served.context.payload for _, served in calls} == {b"token-1"}
        for opened, served in calls:
            served.reset(StreamCode.UNAUTHENTICATED, processed=Processed.NO, reason="a clock jumped")
            assert (await refusal_of(opened)).code is StreamCode.UNAUTHENTICATED
        hubs.route.contexts.renew(AGENT, time.time())
        _, again = await hubs.streams(eof=True)
        assert again.context.payload == b"token-2"


async def test_a_context_that_no_hub_sends_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async with open_hubs() as hubs:
        session = hubs.link.listener
        for payload in (b"{", b"[]", b"{}", b'{"session": 1}', b"\xff", b"[" * 8000):
            context = session.add_context(7, payload)
            stream = TrioStream(session.open_stream(b"head", context=context))
            reset = await refusal_of(stream)
            assert (reset.code, reset.processed) == (StreamCode.PROTOCOL, Processed.NO)
    assert not caplog.records


async def test_a_hub_that_drains_waits_for_forwarded_calls(autojump_clock: MockClock) -> None:
    async with open_hubs() as hubs:
        opened, served = await hubs.streams()
        drained: list[bool] = []

        async def drain() -> None:
            drained.append(await hubs.forwarded.wait_drained(900))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await trio.sleep(300)
            assert not drained
            await end(opened, served)
        assert drained == [True]


async def end(opened: TrioStream, served: TrioStream) -> None:
    await served.send_head(HEAD, eof=True)
    await opened.send_eof()
    await opened.receive_head()


async def test_a_fault_of_ours_ends_one_call_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hubs() as hubs:
        kept = await hubs.streams()

        def fail(*_: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patched:
            patched.setattr(type(hubs.relay.contexts), "context_for", fail)
            reset = await refusal_of(hubs.open())
        assert (reset.code, reset.processed) == (StreamCode.INTERNAL, Processed.MAYBE)
        assert "a bug" in caplog.text
        await end(*kept)
