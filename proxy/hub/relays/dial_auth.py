"""Authenticates the dials of relays: their tokens, and how many each cluster may have at once."""

from __future__ import annotations

import math

import attrs
import trio

from auth.hubtime import hub_time, is_hub_time
from auth.jws import AudienceError, TokenError, UnknownKeyError
from auth.keys import PublicKey
from auth.tokens import HelloClaims, verify_hello
from proxy.hub.identity.replay import ReplayCache
from proxy.hub.identity.replay_store import ReplayStore
from proxy.hub.relays.accept_limit import AcceptLimit, Arrival
from proxy.hub.relays.registry import Registry
from proxy.hub.store.directory import Directory
from proxy.hub.store.entities import Cluster, Mode, Snapshot
from proxy.message.head import RequestHead
from tunnel.websocket.upgrade import SESSION_HEADER

# A hello lives 60 s; 5,000 relays that dial every 5 s stay below this.
HELLOS_REMEMBERED_MAX = 100_000
# Above the rate of sixteen relays that each dial ten times a second.
HELLOS_OF_A_CLUSTER_MAX = 10_000

# How long a relay that resumes a session waits for the record of its token: it gives up a dial after 5 s
# (tunnel.dialing.resumption.RESUME_DIAL_S).
RESUME_RECORD_S = 2.0

# A relay's log shows 200 characters of a refusal (tunnel.dialing.failure.WARNING_CHARACTERS_MAX).
UNKNOWN_KEY = (
    "the hub does not know this relay's key: replaced, removed, or newer than a restored backup; apply what "
    "`hawse admin cluster key NAME` prints, or `cluster add NAME` if it is gone"
)


class WrongClockError(TokenError):
    """A hello that is valid except for its times."""

    def __init__(self, error: TokenError, skew_s: float, cluster_name: str, hub_time: str) -> None:
        super().__init__(error.reason, skew_s=skew_s)
        self.hub_time = hub_time
        """For the relay: a hello that is dated by this time, and repeats it, is valid."""
        self.advice = (
            f"the clock of a relay of cluster {cluster_name} seems to be {abs(skew_s):.0f} s "
            f"{'ahead of' if skew_s > 0 else 'behind'} this hub's: set the one that is wrong; "
            "until then each of the relay's dials is refused once, and repeated by this hub's time"
        )
        """For the hub's log."""


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
    """The id of a hub that has ended, and that the relay names: the refusal names that hub."""


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


def check_hello(token: str, snapshot: Snapshot, *, hub_url: str, pepper: bytes, now: float) -> HelloClaims:
    """Return a hello's claims; raises TokenError (WrongClockError).

    The caller refuses a `jti` that was used before.
    """
    owner = ""

    def find_key(kid: str) -> tuple[str, PublicKey] | None:
        nonlocal owner
        found = snapshot.find_relay_key(kid)
        if found is not None:
            owner, _ = found
        return found

    try:
        claims = verify_hello(token, find_key, hub_url=hub_url, now=now)
    except UnknownKeyError as error:
        raise TokenError(UNKNOWN_KEY) from error
    except AudienceError as error:
        raise TokenError(f"this hub calls itself {hub_url}: set the relay's hub.url to that") from error
    except TokenError as error:
        if error.skew_s is None:
            raise
        # The signature is valid, so the key's holder dated this token and may learn the hub's time.
        name = snapshot.clusters_by_id[owner].name
        raise WrongClockError(error, error.skew_s, name, hub_time(pepper, now)) from error
    if claims.hub_time and not is_hub_time(claims.hub_time, pepper, claims.issued_at):
        raise TokenError(
            "the token is dated by a time that is said to be this hub's, which has not told it: "
            "something else answers relays in its place, or its data folder was replaced"
        )
    return claims
