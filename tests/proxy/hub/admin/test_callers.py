"""Requests whose caller the console has authenticated, streams, downloads and tags over the admin API."""

from __future__ import annotations

import attrs
import pytest
import trio

from audit.record import Actor, ActorType, Kind, Phase
from proxy.hub.admin.streams.cut import CutError
from proxy.hub.admin.streams.download import STALLED_S, DownloadReply
from proxy.hub.admin.verbs.answers import Download
from proxy.hub.admin.verbs.callers import CALLER, Caller, RefusedError
from proxy.hub.store.roles import Role
from tests.fakes.admin import TOKEN, Bench, enrol
from tests.fakes.asgi import Follower, Reply, call, scope_of

ADA = Actor(ActorType.OPERATOR, "ada", "t1", credential="console")


@attrs.define(eq=False)
class Person:
    """Somebody who is signed in at the console."""

    role: Role = Role.OPERATOR
    ended: RefusedError | None = None

    @property
    def caller(self) -> Caller:
        return Caller(actor=ADA, role=self.role, mode="console", session="s1", still_valid=lambda: self.ended)

    async def ask(self, bench: Bench, method: str, target: str, **headers: str) -> Reply:
        return await call(bench.app, method, target, headers=headers, state={CALLER: self.caller})


async def test_a_person_acts_by_the_role_of_the_session(bench: Bench) -> None:
    await enrol(bench)
    bench.recorder.events.clear()
    ada = Person()
    assert (await ada.ask(bench, "POST", "/v1/agents/sre-1/lock")).status == 200
    intent, end = bench.recorder.events
    for event in (intent, end):
        assert (event.actor, event.client and event.client.mode) == (ADA, "console")
    assert (intent.phase, end.phase) == (Phase.INTENT, Phase.COMPLETE)


async def test_a_session_without_the_role_is_refused_and_the_refusal_is_the_persons(bench: Bench) -> None:
    reply = await Person(Role.VIEWER).ask(bench, "POST", "/v1/agents/sre-1/lock")
    assert reply.json["error"] == {
        "code": "forbidden",
        "message": "your session has the role viewer, which may not lock agents: "
        "that takes the role operator or admin",
    }
    [event] = bench.recorder.events
    assert (event.kind, event.actor, event.client and event.client.mode) == (Kind.ADMIN, ADA, "console")


async def test_a_session_that_has_ended_is_refused(bench: Bench) -> None:
    ada = Person(ended=RefusedError(401, "ended", "the session has ended", ADA))
    reply = await ada.ask(bench, "GET", "/v1/teams")
    assert (reply.status, reply.json["error"]["code"]) == (401, "ended")


async def test_a_session_that_ends_before_the_intent_is_durable_changes_nothing(bench: Bench) -> None:
    await enrol(bench)
    ada = Person()

    async def sign_out() -> None:
        await trio.lowlevel.checkpoint()
        ada.ended = RefusedError(401, "ended", "the session has ended", ADA)

    bench.recorder.meanwhile = sign_out
    reply = await ada.ask(bench, "POST", "/v1/agents/sre-1/lock")
    assert reply.status == 401
    assert str(bench.directory.current.agents_by_name["sre-1"].state) == "active"
    assert bench.recorder.events[-1].note == "the session has ended"


@pytest.mark.parametrize("token", [TOKEN, None])
async def test_a_header_never_makes_a_caller(bench: Bench, token: str | None) -> None:
    """The caller is an object that only this process can put into a request's state."""
    reply = await bench.ask("GET", "/v1/teams", token=token, caller="ada", state="caller")
    assert reply.status == (200 if token else 401)


@attrs.define(eq=False)
class Pieces:
    left: list[bytes]
    closed: bool = False

    async def receive(self) -> bytes:
        await trio.sleep(1)
        return self.left.pop(0) if self.left else b""

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


async def test_a_download_is_sent_to_its_end(autojump_clock: trio.abc.Clock) -> None:
    pieces, client = Pieces([b"a", b"b"]), Follower.taking()
    reply = DownloadReply(Person().caller, Download(pieces, "text/csv", "events.csv"))
    await reply(scope_of("GET", "/"), client.receive, client.send)
    assert [await client.piece() for _ in range(3)] == [b"a", b"b", b""]
    assert (client.ended, pieces.closed) == (True, True)
    assert client.headers["content-disposition"] == 'attachment; filename="events.csv"'
    assert "content-length" not in client.headers


async def test_a_download_is_cut_when_its_session_ends(autojump_clock: trio.abc.Clock) -> None:
    ada, pieces, client = Person(), Pieces([b"a"] * 100), Follower.taking()
    reply = DownloadReply(ada.caller, Download(pieces, "text/csv", "events.csv"))

    async def sign_out() -> None:
        await trio.sleep(10)
        ada.ended = RefusedError(401, "ended", "the session has ended", ADA)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sign_out)
        with pytest.raises(CutError):
            await reply(scope_of("GET", "/"), client.receive, client.send)
    assert trio.current_time() <= 12
    assert (client.ended, pieces.closed) == (False, True)


async def test_a_download_that_nobody_takes_is_cut(autojump_clock: trio.abc.Clock) -> None:
    pieces, client = Pieces([b"a"] * 100), Follower.taking()
    reply = DownloadReply(Person().caller, Download(pieces, "text/csv", "events.csv"))

    async def stall() -> None:
        await trio.sleep(5.5)
        client.takes = trio.Event()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stall)
        with pytest.raises(CutError):
            await reply(scope_of("GET", "/"), client.receive, client.send)
    assert trio.current_time() <= 6 + STALLED_S
    assert pieces.closed
