"""Authenticates the dials of relays: their tokens, and how many each cluster may have at once."""

from __future__ import annotations

import math

import attrs
import trio

from auth.jws import TokenError
from auth.tokens import HelloClaims
from proxy.hub.identity.replay import ReplayCache
from proxy.hub.identity.replay_store import ReplayStore
from proxy.hub.relays.accept_limit import AcceptLimit, Arrival
from proxy.hub.relays.registry import Registry
from proxy.hub.relays.relay_auth import check_hello
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Cluster, Mode
from proxy.message.head import RequestHead
from tunnel.websocket.upgrade import SESSION_HEADER

# A hello lives 60 s; 5,000 relays that dial every 5 s stay below this.
HELLOS_REMEMBERED_MAX = 100_000
# Above the rate of sixteen relays that each dial ten times a second.
HELLOS_OF_A_CLUSTER_MAX = 10_000

# How long a relay that resumes a session waits for the record of its token: it gives up a dial after 5 s
# (tunnel.dialing.resumption.RESUME_DIAL_S).
RESUME_RECORD_S = 2.0


@attrs.frozen(eq=False)
class RelayDial:
    """The dial of an authenticated relay."""

    claims: HelloClaims
    cluster: Cluster
    address: str
    arrival: Arrival
    recorded: bool
    """Whether the use of its token is recorded. If not, it may resume a session and begin none."""
    only_resumes: bool = False
    """It may resume a session and begin none: another hub carries its connection, or `answers_for`."""
    answers_for: str = ""
    """The id of a hub that has ended, and that the relay names: it is told so in that hub's name."""


@attrs.define(eq=False)
class DialAuth:
    """Authenticates the dials of relays."""

    directory: Directory
    registry: Registry
    hub_url: str
    """The hub's name, which a token is for."""
    pepper: bytes = attrs.field(repr=False)
    replays: ReplayStore
    limit: AcceptLimit = attrs.Factory(AcceptLimit)
    """Checked before a relay is authenticated."""
    _replays: ReplayCache = attrs.field(init=False)

    @_replays.default
    def _replays_of_store(self) -> ReplayCache:
        return ReplayCache("relay's token", HELLOS_REMEMBERED_MAX, HELLOS_OF_A_CLUSTER_MAX, self.replays)

    async def authenticate(self, head: RequestHead, now: float, arrival: Arrival, address: str) -> RelayDial:
        """Authenticate a relay; raises TokenError (WrongClockError), ReplayedError,
        ReplayStoreUnavailableError or TooManyDialsError.

        When cancelled, the relay's token is used up.
        """
        claims, cluster = self.admit(head, now, arrival)
        recorded = await self._record(head, claims, now)
        return RelayDial(claims, cluster, address, arrival, recorded)

    def admit(self, head: RequestHead, now: float, arrival: Arrival) -> tuple[HelloClaims, Cluster]:
        """Verify a relay's token, whose use is not recorded yet.

        Raises TokenError (WrongClockError) and TooManyDialsError.
        """
        scheme, _, token = (head.header(b"authorization") or b"").partition(b" ")
        if scheme.lower() != b"bearer" or len(head.header_values(b"authorization")) != 1:
            raise TokenError("a relay authenticates by one bearer token")
        snapshot = self.directory.current
        claims = check_hello(
            token.decode("ascii", "replace"),
            snapshot,
            hub_url=self.hub_url,
            pepper=self.pepper,
            now=now,
        )
        cluster = snapshot.clusters_by_id[claims.cluster_id]
        if cluster.mode is not Mode.TUNNEL:
            raise TokenError(f"cluster {cluster.name} is enrolled in direct mode: its relay does not dial")
        # Checked before the token is written to the replay store, which costs most.
        self.limit.admit_cluster(arrival, cluster.id, cluster.name, trio.current_time())
        return claims, cluster

    async def _record(self, head: RequestHead, claims: HelloClaims, now: float) -> bool:
        """Record the use of a relay's token; False if that took too long, and the relay may resume a session.

        Raises as `authenticate`.
        """
        resumes = self.has_session(head, claims)
        with trio.move_on_after(RESUME_RECORD_S if resumes else math.inf):
            await self._replays.use(claims.cluster_id, claims.jti, claims.expires_at, now)
            return True
        # The session is in this process, so its memory has every token that was used with it. Streams go on
        # for longer than most databases are away.
        return False

    def has_session(self, head: RequestHead, claims: HelloClaims) -> bool:
        """Whether the session that a relay wants to resume is here and its own."""
        named = (head.header(SESSION_HEADER) or b"").decode("ascii", "replace")
        relay = self.registry.find(claims.cluster_id, claims.instance, named)
        return relay is not None and relay.kid == claims.kid
