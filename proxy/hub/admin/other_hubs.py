"""The live calls of the other hubs: this hub asks for them over its links, and answers what others ask.

A hub that does not answer in time is named, so that an operator knows which calls are missing. It may have
lost its link, be stopped, or be of a version that does not know the question.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import attrs
import msgspec
import trio

from proxy.hub.admin.actions.hub import Hubs
from proxy.hub.admin.live_calls import CallsPage
from proxy.hub.membership.member import Member
from proxy.hub.peers.asks import Answer
from proxy.hub.peers.link import AskFailed, LinkDown, PeerLink
from proxy.hub.relays.operations import CallsElsewhere, SessionInfo

# An operator waits for all hubs. One that answers does so within milliseconds.
ANSWER_WITHIN_S = 2.0
# For all pages of one hub. 26,000 calls, which fill its memory, are 34 pages, and take 1.5 s of CPU in all.
# The operator's command waits for 30 s.
ALL_PAGES_WITHIN_S = 20.0
SESSIONS, KILL = "sessions", "kill"

Ask = Callable[[str, Mapping[str, object]], Awaitable[Mapping[str, object]]]

_log = logging.getLogger("hawse.hub.admin")


@attrs.frozen
class Peer:
    """Another hub process on the same directory."""

    name: str
    """Its id; with a note, where it is a replaced process of this hub."""
    ask: Ask | None
    """Asks it over its link; None without links. Raises LinkDown, AskFailed, within ANSWER_WITHIN_S."""


class OwnCalls(Protocol):
    """The calls of this hub, a page at a time."""

    async def page(self, *, agent: str | None, cluster: str | None, after: str) -> CallsPage:
        """Return the first calls whose id is above `after`."""
        ...

    async def kill_page(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> CallsPage:
        """End the first calls that match, and return them."""
        ...


class _Which(msgspec.Struct, frozen=True):
    """A question. Unknown keys are ignored, as those of a newer hub."""

    id: str | None = None
    agent: str | None = None
    cluster: str | None = None
    after: str = ""
    reason: str = ""


class _Page(msgspec.Struct, frozen=True):
    """An answer."""

    calls: list[SessionInfo]
    more: bool


@attrs.frozen
class OtherHubsCalls:
    """Asks the other hubs (OtherHubs of proxy.hub.relays.operations)."""

    peers: Callable[[], Sequence[Peer]]

    async def sessions(self, *, agent: str | None = None, cluster: str | None = None) -> CallsElsewhere:
        """Return the calls at other hubs that match all given criteria, and the hubs that did not answer."""
        which = {"agent": agent, "cluster": cluster}

        async def ask(ask: Ask, found: list[SessionInfo]) -> None:
            after = ""
            while True:
                page = _read(await ask(SESSIONS, {**which, "after": after}))
                found += page.calls
                if not page.more or not page.calls:
                    return
                after = page.calls[-1].id

        return await self._ask_all(ask)

    async def kill(
        self, *, session_id: str | None, agent: str | None, cluster: str | None, reason: str
    ) -> CallsElsewhere:
        """End the calls at other hubs that match, and return them, and the hubs that did not answer.

        The calls that a hub has ended before it stopped answering are among those returned.
        """
        which = {"id": session_id, "agent": agent, "cluster": cluster, "reason": reason}

        async def ask(ask: Ask, killed: list[SessionInfo]) -> None:
            more = True
            while more:
                page = _read(await ask(KILL, which))
                killed += page.calls
                more = page.more

        return await self._ask_all(ask)

    async def _ask_all(self, ask: Callable[[Ask, list[SessionInfo]], Awaitable[None]]) -> CallsElsewhere:
        """Ask all hubs at once."""
        found: list[SessionInfo] = []
        silent: list[str] = []

        async def ask_one(peer: Peer) -> None:
            if peer.ask is None:
                silent.append(peer.name)
                return
            why = f"its calls were not all named within {ALL_PAGES_WITHIN_S:.0f} s"
            with trio.move_on_after(ALL_PAGES_WITHIN_S):
                try:
                    await ask(peer.ask, found)
                except (LinkDown, AskFailed, msgspec.ValidationError) as error:
                    why = str(error)
                else:
                    return
            _log.warning("hub %s does not say which calls it has: %s", peer.name, why)
            silent.append(peer.name)

        async with trio.open_nursery() as nursery:
            for peer in self.peers():
                nursery.start_soon(ask_one, peer)
        return CallsElsewhere(found, sorted(silent))


class Links(Protocol):
    """The part of HubLinks that this module uses (proxy.hub.peers.links)."""

    async def wait_link(self, member: Member, within_s: float) -> PeerLink:
        """Return the link to a hub process once it is up; raises LinkDown."""
        ...


def peers_of(hubs: Hubs, links: Links | None) -> list[Peer]:
    """Return the other hub processes; without links, which need `peer.listen`, none of them can be asked."""
    here, peers = hubs.me.hub, []
    for member in hubs.others():
        name = f"{member.hub} (replaced)" if member.hub == here else member.hub
        peers.append(Peer(name, None if links is None else partial(_ask, links, member)))
    return peers


async def _ask(
    links: Links, member: Member, question: str, body: Mapping[str, object]
) -> Mapping[str, object]:
    """See Peer.ask. A hub that was just started has its link within milliseconds."""
    until = trio.current_time() + ANSWER_WITHIN_S
    link = await links.wait_link(member, ANSWER_WITHIN_S)
    return await link.ask(question, body, until - trio.current_time())


def answer_others(answers: dict[str, Answer], own: OwnCalls) -> None:
    """Answer what other hubs ask about the calls of this one, by the answers of the mesh."""

    async def sessions(_: PeerLink, question: Mapping[str, object]) -> dict[str, object]:
        return await answer_sessions(own, question)

    async def kill(_: PeerLink, question: Mapping[str, object]) -> dict[str, object]:
        return await answer_kill(own, question)

    answers.update({SESSIONS: sessions, KILL: kill})


async def answer_sessions(own: OwnCalls, question: Mapping[str, object]) -> dict[str, object]:
    """Answer which calls this hub has."""
    which = _question(question)
    return _written(await own.page(agent=which.agent, cluster=which.cluster, after=which.after))


async def answer_kill(own: OwnCalls, question: Mapping[str, object]) -> dict[str, object]:
    """End calls for an operator of another hub."""
    which = _question(question)
    if which.id is None and which.agent is None and which.cluster is None:
        raise AskFailed("the question names no call, no agent and no cluster")
    return _written(
        await own.kill_page(
            session_id=which.id, agent=which.agent, cluster=which.cluster, reason=which.reason
        )
    )


def _question(question: Mapping[str, object]) -> _Which:
    try:
        return msgspec.convert(question, _Which)
    except msgspec.ValidationError as error:
        raise AskFailed(f"the question cannot be read: {error}") from error


def _read(answer: Mapping[str, object]) -> _Page:
    """Read an answer; raises msgspec.ValidationError."""
    return msgspec.convert(answer, _Page)


def _written(page: CallsPage) -> dict[str, object]:
    return {"calls": [attrs.asdict(each, recurse=False) for each in page.calls], "more": page.more}
