"""The facts of the overview that only a running hub has, and those of the other hubs, over the links.

A hub that does not answer in time is named, as in proxy.hub.admin.other_hubs.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs
import msgspec
import trio

from audit.stores import OwnTrail
from proxy.hub.admin.other_hubs import Peer
from proxy.hub.admin.overview.health import Facts
from proxy.hub.admin.overview.shapes import Attention, HubFacts
from proxy.hub.admin.streams.changes import Watched
from proxy.hub.admin.verbs.answers import time_text
from proxy.hub.calls.calls import Calls
from proxy.hub.health.trail_watch import TrailWatch, fullness
from proxy.hub.membership.member import Member
from proxy.hub.membership.members import Members
from proxy.hub.peers.asks import Answer
from proxy.hub.peers.link import AskFailed, LinkDown, PeerLink
from proxy.hub.relays.operations import Operations, RelayInfo
from proxy.hub.relays.registry import Registry
from proxy.hub.store.directory import Directory

FACTS = "facts"
# A page waits for all hubs, and each answers within milliseconds.
ANSWER_WITHIN_S = 1.0
# A gap stays in the trail. The overview shows it to the people of the next day.
GAP_SHOWN_S = 24 * 3600.0

_log = logging.getLogger("hawse.hub.admin")


@attrs.frozen
class RunningHub:
    """The running hub (Hub of proxy.hub.admin.overview.health)."""

    running: Calls
    operations: Operations
    directory: Directory
    watch: TrailWatch
    hub_id: str
    """"" on SQLite."""

    @property
    def calls(self) -> Mapping[str, int]:
        """See Hub."""
        return Counter(live.call.cluster.name for live in self.running.live)

    @property
    def relays(self) -> Sequence[RelayInfo]:
        """See Hub."""
        return self.operations.relays()

    @property
    def lacks_rights(self) -> Mapping[str, float]:
        """See Hub."""
        return self.running.forwarding.lacked.clusters

    def troubles(self) -> Iterator[Attention]:
        """See Hub."""
        if (down_s := self.watch.recorder.down_s) > 0:
            text = f"no event has reached the trail for {down_s:.0f} s: writes and tokens are refused"
            yield Attention("audit-gap", "critical", "trail", self.hub_id, text)
        elif (gap := self.watch.recorder.last_gap) is not None and gap[0] > time.time() - GAP_SHOWN_S:
            text = f"no event reached the trail for {gap[1]:.0f} s: hawse audit list --kind audit.gap"
            yield Attention("audit-gap", "warning", "trail", self.hub_id, text, time_text(gap[0]))
        if (refusal := self.directory.refusal()) != "":
            yield Attention("database-stale", "critical", "database", self.hub_id, refusal)
        folder, disk = self.watch.folder, self.watch.disk
        if folder is not None and disk is not None and (warning := fullness(folder, disk)) is not None:
            yield Attention("disk-full", "warning", "trail", self.hub_id, warning)


@attrs.frozen
class OtherHubsFacts:
    """Asks the other hubs for their facts (FactsElsewhere of proxy.hub.admin.actions.overview)."""

    peers: Callable[[], Sequence[Peer]]

    async def facts(self) -> tuple[Sequence[HubFacts], Sequence[str]]:
        """Return the facts of the hubs that answered, and the names of the others."""
        found: list[HubFacts] = []
        silent: list[str] = []

        async def ask(peer: Peer) -> None:
            if peer.ask is not None:
                with trio.move_on_after(ANSWER_WITHIN_S):
                    try:
                        found.append(msgspec.convert(await peer.ask(FACTS, {}), HubFacts))
                    except (LinkDown, AskFailed, msgspec.ValidationError) as error:
                        _log.warning("hub %s does not say what it has: %s", peer.name, error)
                    else:
                        return
            silent.append(peer.name)

        async with trio.open_nursery() as nursery:
            for peer in self.peers():
                nursery.start_soon(ask, peer)
        return found, sorted(silent)


def watched_of(calls: Calls, registry: Registry, trail: OwnTrail, members: Members | None) -> Watched:
    """Return what a stream of changes compares, besides the directory.

    Of the other hubs it is what they state with each renewal of their leases.
    """

    def others() -> list[Member]:
        return [] if members is None else members.others()

    def sessions() -> object:
        return calls.live.mark, [(each.boot, each.calls) for each in others()]

    def relays() -> object:
        here = [(each.session.session_id, each.leaving, each.statement) for each in registry.relays()]
        elsewhere = [(each.cluster_id, each.instance) for each in registry.elsewhere()]
        return here, elsewhere, [(each.boot, each.tunnels) for each in others()]

    def hubs() -> object:
        return [(each.boot, each.state, each.living, each.software) for each in others()]

    return {"sessions": sessions, "relays": relays, "hubs": hubs, "trail": lambda: trail.mark}


def answer_facts(answers: dict[str, Answer], facts: Facts) -> None:
    """Answer the other hubs what this one has, by the answers of the mesh."""

    async def answer(_: PeerLink, question: Mapping[str, object]) -> dict[str, object]:
        built = msgspec.to_builtins(await facts())
        assert isinstance(built, dict)
        return built

    answers[FACTS] = answer
