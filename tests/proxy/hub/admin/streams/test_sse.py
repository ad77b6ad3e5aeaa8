"""Server-sent events: what a client gets, how a stream ends, and what a slow client is worth."""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from audit.record import Actor, ActorType
from proxy.hub.admin.streams import sse
from proxy.hub.admin.streams.cut import CutError
from proxy.hub.admin.streams.sse import EventStreams, TooManyStreamsError
from proxy.hub.admin.verbs.answers import Gap, ServerEvent
from proxy.hub.admin.verbs.callers import Caller, RefusedError
from proxy.hub.store.roles import Role
from tests.fakes.asgi import Follower, scope_of

ADA = Actor(ActorType.OPERATOR, "ada")


@attrs.define(eq=False)
class Feed:
    """A source that a test feeds."""

    batches: list[Sequence[ServerEvent] | Exception] = attrs.Factory(list)
    closed: int = 0
    taken: int = 0

    async def receive(self) -> Sequence[ServerEvent]:
        if not self.batches:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        batch = self.batches.pop(0)
        self.taken += 1
        if isinstance(batch, Exception):
            raise batch
        return batch

    async def aclose(self) -> None:
        self.closed += 1
        await trio.lowlevel.checkpoint()


@attrs.define(eq=False)
class Session:
    """A caller whose right to a stream a test takes away."""

    refused: RefusedError | None = None
    checked_at_s: list[float] = attrs.Factory(list)

    @property
    def caller(self) -> Caller:
        return Caller(actor=ADA, role=Role.VIEWER, still_valid=self.still_valid)

    def still_valid(self) -> RefusedError | None:
        self.checked_at_s.append(trio.current_time())
        return self.refused


@attrs.define(eq=False)
class Bench:
    nursery: trio.Nursery
    streams: EventStreams = attrs.Factory(EventStreams)
    session: Session = attrs.Factory(Session)
    cut: bool = False
    over: trio.Event = attrs.Factory(trio.Event)

    def open(self, feed: Feed, client: Follower) -> Follower:
        response = self.streams.serve(self.session.caller, feed)

        async def serve() -> None:
            try:
                await response(scope_of("GET", "/"), client.receive, client.send)
            except CutError:
                self.cut = True
            self.over.set()

        self.nursery.start_soon(serve)
        return client


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    return Bench(nursery)


def batch(*numbers: int) -> list[ServerEvent]:
    return [ServerEvent(b"%d" % number, "event", f"c{number}") for number in numbers]


async def test_a_batch_is_one_piece_and_the_end_of_the_source_is_that_of_the_answer(bench: Bench) -> None:
    feed = Feed([batch(1, 2), [ServerEvent(b"{}")], trio.EndOfChannel()])
    client = bench.open(feed, Follower.taking())
    retry = await client.piece()
    assert retry.startswith(b"retry: ")
    assert sse.RETRY_MIN_MS <= int(retry.split()[1]) <= sse.RETRY_MAX_MS
    assert await client.piece() == b"id: c1\nevent: event\ndata: 1\n\nid: c2\nevent: event\ndata: 2\n\n"
    assert await client.piece() == b"data: {}\n\n"
    assert await client.piece() == b""
    await bench.over.wait()
    assert (client.status, client.ended, bench.cut, feed.closed, bench.streams.open) == (
        200,
        True,
        False,
        1,
        0,
    )
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "content-length" not in client.headers


async def test_a_source_that_lost_events_ends_the_stream_by_a_gap(bench: Bench) -> None:
    feed = Feed([batch(1), Gap("30 events were lost")])
    client = bench.open(feed, Follower.taking())
    assert (await client.event())["id"] == "c1"
    assert await client.event() == {"event": "gap", "data": '{"message":"30 events were lost"}'}
    assert await client.event() == {}
    assert feed.closed == 1


async def test_a_silent_stream_has_a_comment_each_15_seconds(bench: Bench, autojump_clock: MockClock) -> None:
    client = bench.open(Feed(), Follower.taking())
    began = trio.current_time()
    await client.piece()
    for number in (1, 2, 3):
        assert await client.piece() == b":\n\n"
        assert 0 <= trio.current_time() - began - number * sse.COMMENT_EVERY_S <= number * sse.CHECK_EVERY_S


async def test_all_streams_check_their_sessions_at_once_each_second(
    bench: Bench, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        await trio.sleep(0.3)
        await bench.open(Feed(), Follower.taking()).piece()
    await trio.sleep_until(5.5)
    assert bench.session.checked_at_s == [float(second) for second in range(1, 6) for _ in range(3)]


async def test_many_streams_check_their_sessions_in_groups(
    bench: Bench, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them in one pass would delay calls."""
    monkeypatch.setattr(sse, "STREAMS_MAX", 8)
    monkeypatch.setattr(sse, "GROUP_MAX", 2)
    for _ in range(8):
        await bench.open(Feed(), Follower.taking()).piece()
    await trio.sleep_until(3)
    times = [2.0, 2.25, 2.5, 2.75]
    assert sorted(at for at in bench.session.checked_at_s if 2 <= at < 3) == sorted(times * 2)


@pytest.mark.parametrize("code", ["expired", "forbidden"])
async def test_a_stream_ends_within_2_seconds_of_its_session(
    bench: Bench, autojump_clock: MockClock, code: str
) -> None:
    feed = Feed()
    client = bench.open(feed, Follower.taking())
    await client.piece()
    await trio.sleep(60.3)
    bench.session.refused = RefusedError(401, code, "no more", ADA)
    ended_at = trio.current_time()
    event = await client.event()
    assert event["event"] == "end"
    assert json.loads(event["data"]) == {"code": code, "message": "no more"}
    assert await client.event() == {}
    assert trio.current_time() - ended_at <= 2.0
    assert (bench.cut, feed.closed) == (False, 1)


async def test_no_event_is_sent_after_the_session_was_found_ended(
    bench: Bench, autojump_clock: MockClock
) -> None:
    feed = Feed()
    client = bench.open(feed, Follower.taking())
    await client.piece()
    bench.session.refused = RefusedError(401, "ended", "no more", ADA)
    await trio.sleep(sse.CHECK_EVERY_S / 2)
    # It comes together with the check, which is first.
    feed.batches += [batch(1)] * 3
    assert (await client.event())["event"] == "end"


async def test_a_stream_ends_when_the_hub_drains(bench: Bench, autojump_clock: MockClock) -> None:
    draining = False
    bench.streams.draining = lambda: draining
    client = bench.open(Feed(), Follower.taking())
    await client.piece()
    draining = True
    assert json.loads((await client.event())["data"])["code"] == "draining"
    assert trio.current_time() <= 2.0


async def test_a_client_that_takes_nothing_is_cut_and_its_source_waits(
    bench: Bench, autojump_clock: MockClock
) -> None:
    feed = Feed([batch(number) for number in range(100)])
    client = bench.open(feed, Follower.taking())
    await client.piece()
    client.takes = trio.Event()
    await wait_all_tasks_blocked()
    taken = feed.taken
    began = trio.current_time()
    await bench.over.wait()
    assert bench.cut
    assert taken <= 2 + sse.BUFFER_BATCHES + 1
    assert sse.STALLED_S <= trio.current_time() - began <= sse.STALLED_S + 2 * sse.CHECK_EVERY_S
    assert (feed.closed, bench.streams.open) == (1, 0)


async def test_a_client_that_takes_nothing_is_cut_within_2_seconds_of_its_session(
    bench: Bench, autojump_clock: MockClock
) -> None:
    feed = Feed()
    client = bench.open(feed, Follower.taking())
    await client.piece()
    await trio.sleep(30)
    client.takes = trio.Event()
    feed.batches += [batch(1)] * 2
    bench.session.refused = RefusedError(401, "ended", "no more", ADA)
    began = trio.current_time()
    await bench.over.wait()
    assert trio.current_time() - began <= 2.0


async def test_a_client_that_leaves_frees_its_stream(bench: Bench) -> None:
    feed = Feed()
    client = bench.open(feed, Follower.taking())
    await client.piece()
    assert bench.streams.open == 1
    client.gone.set()
    await bench.over.wait()
    assert (feed.closed, bench.streams.open) == (1, 0)


async def test_a_hub_has_a_bound_of_streams(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "STREAMS_MAX", 2)
    first, second = (bench.open(Feed(), Follower.taking()) for _ in range(2))
    await first.piece()
    await second.piece()
    with pytest.raises(TooManyStreamsError):
        bench.streams.serve(bench.session.caller, Feed())
    first.gone.set()
    await bench.over.wait()
    bench.streams.serve(bench.session.caller, Feed())
