"""Actions on the connected relays and the live calls."""

from __future__ import annotations

import attrs
import msgspec

from proxy.hub.admin.actions.answers import Done, Payload, known, time_text
from proxy.hub.admin.actions.call import Call
from proxy.hub.admin.actions.verb import verb
from proxy.hub.relays.operations import Operations, SessionInfo, Sessions
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import InvalidError, NotFoundError
from proxy.hub.store.entities import Snapshot
from proxy.hub.store.names import shown
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store
from proxy.kubernetes.statement import Statement
from tunnel.net.fairness import in_chunks

# The operator's text in the reason of a kill. A relay receives at most 200 bytes of it.
REASON_LENGTH_MAX = 200


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

    @property
    def _now(self) -> Snapshot:
        return self.directory.current

    @verb("GET", "/v1/relays", "list", "relays", Role.VIEWER)
    async def relays(self) -> Done:
        """List the relays: connected ones with the round-trip time, others with the time of last contact."""
        live = {(relay.cluster, relay.instance): relay for relay in self.operations.relays()}
        listed: list[Payload] = [
            {
                "cluster": relay.cluster,
                "instance": relay.instance,
                "connected": True,
                "version": relay.version,
                "address": relay.address,
                "connected_at": time_text(relay.connected_at),
                "last_seen_at": time_text(relay.last_seen),
                "rtt_ms": relay.rtt_ms,
                "streams": relay.streams,
                "key": relay.kid,
                "api_server": _api_server(relay.statement),
                "pinned": bool(relay.statement.cluster_uid),
            }
            for relay in live.values()
        ]
        listed += [
            {
                "cluster": relay.cluster,
                "instance": relay.instance,
                "connected": False,
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
            for relay in await self.directory.read(Store.relay_instances)
            if (relay.cluster, relay.instance) not in live
        ]
        listed.sort(key=lambda relay: (str(relay["cluster"]), not relay["connected"], str(relay["instance"])))
        return Done({"relays": listed})

    @verb("GET", "/v1/sessions", "list", "sessions", Role.OPERATOR, with_call=True)
    async def list_all(self, call: Call) -> Done:
        """List the live calls."""
        agent, cluster = call.query.get("agent"), call.query.get("cluster")
        await self._check_names(agent, cluster)
        listed = await self.live.sessions(agent=agent, cluster=cluster)
        beside = await self.live.hubs_beside()
        return Done({"sessions": await in_chunks(_session, listed), "hubs_beside": beside})

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
        """End one call, or all calls of an agent, of a cluster, or of an agent on a cluster."""
        if (kill.id is None) == (kill.agent is None and kill.cluster is None):
            raise InvalidError("name one session by its id, or an agent, a cluster or both")
        reason = kill.reason.strip()
        if not 1 <= len(reason) <= REASON_LENGTH_MAX or not reason.isprintable():
            raise InvalidError(f"the reason is 1 to {REASON_LENGTH_MAX} printable characters")
        await self._check_names(kill.agent, kill.cluster)
        # The agent reads the reason, so it contains only the token's name. This kill's event names the user.
        token_name = call.operator.partition(":")[0]
        killed = await self.live.kill(
            session_id=kill.id,
            agent=kill.agent,
            cluster=kill.cluster,
            reason=f"killed by the operator {token_name}: {reason}",
        )
        if kill.id is not None and not killed:
            raise NotFoundError(f"no session {shown(kill.id)} is under way: see hawse admin session list")
        named = {"id": kill.id, "agent": kill.agent, "cluster": kill.cluster}
        which = " ".join(f"{key}={value}" for key, value in named.items() if value is not None)
        return Done(
            {
                "killed": await in_chunks(_session, killed),
                "hubs_beside": await self.live.hubs_beside(),
            },
            note=f"{which} killed={len(killed)} reason={reason}",
        )

    async def _check_names(self, agent: str | None, cluster: str | None) -> None:
        if agent is not None:
            known(self._now.agents_by_name, "agent", agent)
        # A removed cluster may still have calls that are ending.
        if cluster is not None and not await self.live.sessions(cluster=cluster):
            known(self._now.clusters_by_name, "cluster", cluster)


def _api_server(statement: Statement) -> str | None:
    """Return whether the API server answers; None if the relay does not report it, as older ones do not."""
    if statement.api_server is None:
        return None
    return "up" if statement.api_server else "down"


def _session(session: SessionInfo) -> Payload:
    return {**attrs.asdict(session, recurse=False), "started_at": time_text(session.started_at)}
