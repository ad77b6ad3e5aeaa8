"""Actions on the connected relays and the live calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import attrs
import msgspec

from proxy.hub.admin.verbs import shapes
from proxy.hub.admin.verbs.answers import Done, Payload, known, time_text
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.relays.operations import (
    CallsElsewhere,
    Operations,
    OtherHubs,
    RelayInfo,
    SessionInfo,
    Sessions,
)
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import InvalidError, NotFoundError
from proxy.hub.store.entities import Snapshot
from proxy.hub.store.names import shown
from proxy.hub.store.roles import Role
from proxy.kubernetes.statement import Statement
from tunnel.net.fairness import in_chunks

# The operator's text in the reason of a kill. A relay receives at most 200 bytes of it.
REASON_LENGTH_MAX = 200


class RelayListing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cluster: str | None = None
    """Only relays of this cluster."""


class SessionsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    agent: str | None = None
    cluster: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, description="the newest ones alone")] | None = None


class Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reason: str
    id: str | None = None
    agent: str | None = None
    cluster: str | None = None


@attrs.frozen
class SessionActions:
    """The relays and the calls."""

    directory: Changes
    operations: Operations
    live: Sessions
    others: OtherHubs | None = None
    """None for a hub that runs alone."""

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    @verb("GET", "/v1/relays", "list", "relays", Role.VIEWER, query=RelayListing, answer=shapes.Relays)
    async def relays(self, listing: RelayListing) -> Done:
        """List the tunnels of relays at all hubs, and the last contact of relays that have none.

        Only the hub of a tunnel knows its round-trip time, its streams and the relay's statement.
        """
        cluster = listing.cluster
        cluster_id = None if cluster is None else known(self._now.clusters_by_name, "cluster", cluster).id
        tunnels = [
            relay
            for relay in [*self.operations.relays(), *await self.operations.elsewhere()]
            if cluster in (None, relay.cluster)
        ]
        listed = [_tunnel(relay) for relay in tunnels]
        connected = {(relay.cluster, relay.instance) for relay in tunnels}
        listed += [
            {
                "cluster": relay.cluster,
                "instance": relay.instance,
                "connected": False,
                "leaving": False,
                "hub": "",
                "version": relay.version,
                "address": relay.address,
                "connected_at": time_text(relay.connected_at),
                "last_seen_at": time_text(relay.last_seen_at),
                "rtt_ms": None,
                "streams": 0,
                "key": "",
                "api_server": None,
                "pinned": False,
            }
            for relay in await self.directory.read(lambda store: store.relay_instances(cluster_id))
            if (relay.cluster, relay.instance) not in connected
        ]
        listed.sort(key=lambda relay: (str(relay["cluster"]), not relay["connected"], str(relay["instance"])))
        return Done({"relays": listed})

    @verb("GET", "/v1/sessions", "list", "sessions", Role.OPERATOR, query=SessionsQuery)
    async def list_all(self, query: SessionsQuery) -> Done:
        """List the live calls at all hubs, the oldest first, and name the hubs that did not answer in time.

        `total` counts all of them, also with a `limit`.
        """
        agent, cluster = query.agent, query.cluster
        await self._check_names(agent, cluster)
        elsewhere = CallsElsewhere()
        if self.others is not None:
            elsewhere = await self.others.sessions(agent=agent, cluster=cluster)
        listed = [*await self.live.sessions(agent=agent, cluster=cluster), *elsewhere.calls]
        listed.sort(key=lambda session: session.started_at)
        newest = listed if query.limit is None else listed[-query.limit :]
        sessions = await in_chunks(self._listed, newest)
        return Done({"sessions": sessions, "total": len(listed), **await self._missing(elsewhere)})

    @verb(
        "POST",
        "/v1/sessions/kill",
        "kill",
        "sessions",
        Role.OPERATOR,
        body=Kill,
        with_call=True,
        revokes=True,
    )
    async def kill(self, kill: Kill, call: Call) -> Done:
        """End one call, or all calls of an agent, of a cluster, or of an agent on a cluster, at all hubs."""
        if (kill.id is None) == (kill.agent is None and kill.cluster is None):
            raise InvalidError("name one session by its id, or an agent, a cluster or both")
        reason = kill.reason.strip()
        if not 1 <= len(reason) <= REASON_LENGTH_MAX or not reason.isprintable():
            raise InvalidError(f"the reason is 1 to {REASON_LENGTH_MAX} printable characters")
        await self._check_names(kill.agent, kill.cluster)
        # The agent reads the reason, so it contains only the token's name. This kill's event names the user.
        token_name = call.operator.partition(":")[0]
        killed, elsewhere = await self._kill(kill, f"killed by the operator {token_name}: {reason}")
        # A hub that did not answer may have the call.
        if kill.id is not None and not killed and not elsewhere.silent:
            raise NotFoundError(f"no session {shown(kill.id)} is under way: see hawse admin session list")
        named = {"id": kill.id, "agent": kill.agent, "cluster": kill.cluster}
        which = " ".join(f"{key}={value}" for key, value in named.items() if value is not None)
        unanswered = f" unanswered={','.join(elsewhere.silent)}" if elsewhere.silent else ""
        return Done(
            {"killed": await in_chunks(_session, killed), **await self._missing(elsewhere)},
            note=f"{which} killed={len(killed)}{unanswered} reason={reason}",
        )

    async def _kill(self, kill: Kill, reason: str) -> tuple[Sequence[SessionInfo], CallsElsewhere]:
        """End the calls here and at the other hubs; return all of them, and those hubs' answers."""
        here = await self.live.kill(session_id=kill.id, agent=kill.agent, cluster=kill.cluster, reason=reason)
        # An id is that of one call.
        if self.others is None or (kill.id is not None and here):
            return here, CallsElsewhere()
        elsewhere = await self.others.kill(
            session_id=kill.id, agent=kill.agent, cluster=kill.cluster, reason=reason
        )
        return [*here, *elsewhere.calls], elsewhere

    def _listed(self, session: SessionInfo) -> Payload:
        agent = self._now.agents_by_name.get(session.agent)
        return {**_session(session), "owner": agent.owner if agent is not None else ""}

    async def _missing(self, elsewhere: CallsElsewhere) -> Payload:
        """Return which hubs' calls an answer lacks."""
        # Among several hubs, one that was replaced is asked like any other.
        beside = 0 if self.others is not None else await self.live.hubs_beside()
        return {"hubs_beside": beside, "silent_hubs": [*elsewhere.silent]}

    async def _check_names(self, agent: str | None, cluster: str | None) -> None:
        if agent is not None:
            known(self._now.agents_by_name, "agent", agent)
        # A removed cluster may still have calls that are ending.
        if cluster is not None and not await self.live.sessions(cluster=cluster):
            known(self._now.clusters_by_name, "cluster", cluster)


def _tunnel(relay: RelayInfo) -> Payload:
    return {
        "cluster": relay.cluster,
        "instance": relay.instance,
        "connected": True,
        "leaving": relay.leaving,
        "hub": relay.hub,
        "version": relay.version,
        "address": relay.address,
        "connected_at": time_text(relay.connected_at),
        "last_seen_at": time_text(relay.last_seen),
        "rtt_ms": relay.rtt_ms,
        "streams": relay.streams,
        "key": relay.kid,
        "api_server": _api_server(relay.statement),
        # Unknown for a tunnel at another hub.
        "pinned": None if relay.streams is None else bool(relay.statement.cluster_uid),
    }


def _api_server(statement: Statement) -> str | None:
    """Return whether the API server answers; None if the relay does not report it, as older ones do not."""
    if statement.api_server is None:
        return None
    return "up" if statement.api_server else "down"


def _session(session: SessionInfo) -> Payload:
    return {**attrs.asdict(session, recurse=False), "started_at": time_text(session.started_at)}
