"""The hub's clock as a relay knows it, from statements that a hub key signed for this session.

A relay token lives for one minute of the hub's clock, and the relay's own clock may be wrong. TLS does not
authenticate the hub's clock: a stolen certificate or a TLS-terminating proxy can state any time, and replay
an old token at that time. So the hub signs its time together with the nonce that the relay made for the
session. Such a statement is younger than the nonce. From then on the relay counts the seconds itself, and a
delayed statement changes nothing:

    ahead_s = max(stated - steady, ahead_s - DRIFT * seconds since the last statement)

`steady` is a clock that nothing sets and nothing slews. DRIFT is the most that two such clocks may differ, so
a session of weeks stays in step with the hub. It is also what an attacker gains by withholding every
statement for weeks: 43 s a day. `bound_s` limits that: the hub's clock may differ from the relay's by no
more.

The known time of a hub outlives the session, so it never goes back for one hub (one hub process). Another hub
has another clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import attrs

from auth.jws import TokenError, UnknownKeyError, header_of
from auth.key_rotation import TrustedKeys
from auth.keys import KeySet, SigningKey
from auth.signed import check_parties, open_signed, sign, text_claim, time_claim
from auth.tokens import cluster_audience

TIME_TYPE = "hub-time+jwt"
# Oscillators are accurate to 100 ppm, so two differ by up to 200 ppm. A hub whose clock was set back loses
# HUB_DRIFT on top (proxy/hub/relays/token_clock.py). The rest is margin.
DRIFT = 500e-6
# The hubs of eight tunnels (tunnel.dialing.tunnels.TUNNELS_MAX), and as many predecessors while their
# streams last.
HUBS_MAX = 16
# A session's end reason has at most 200 bytes.
UNTRUSTED_HUB = (
    "the hub signs by a key that this relay does not trust: restart the relay; if that does not help, apply "
    "what `hawse admin cluster key NAME` prints on the hub"
)


@attrs.frozen
class SignedTime:
    """The contents of a statement about the hub's time."""

    hub: str
    """Identifies the hub process."""
    at: int
    """Epoch seconds."""
    signer: str
    """The `kid` of the key that signed it."""


def issue_time(key: SigningKey, *, issuer: str, cluster_id: str, nonce: str, hub: str, now: float) -> str:
    """Sign the hub's time for the session with this nonce; `hub` identifies the hub process."""
    claims = {
        "iss": issuer,
        "aud": cluster_audience(cluster_id),
        "nonce": nonce,
        "hub": hub,
        "iat": math.floor(now),
    }
    return sign(key, TIME_TYPE, claims)


def is_time(statement: str) -> bool:
    """Whether a statement is about the hub's time, by its unverified header."""
    try:
        return header_of(statement).get("typ") == TIME_TYPE
    except TokenError:
        return False


def read_time(statement: str, keys: KeySet, *, issuer: str, cluster_id: str, nonce: str) -> SignedTime:
    """Verify a statement for this session; raises TokenError."""
    claims, signer = open_signed(statement, keys.get, TIME_TYPE)
    check_parties(claims, issuer=issuer, audience=cluster_audience(cluster_id))
    if text_claim(claims, "nonce") != nonce:
        raise TokenError("the hub's time was signed for another session")
    return SignedTime(text_claim(claims, "hub"), time_claim(claims, "iat"), signer)


@attrs.define(eq=False)
class RisingClock:
    """A clock that follows another one forwards at once, and backwards by no more than `drift`.

    All arguments are seconds: `steady_s` of a clock that nothing sets, `reading_s` of the clock to follow.
    """

    drift: float
    ahead_s: float = -math.inf
    """Offset from the steady clock; minus infinity before the first statement."""
    _read_at_s: float = 0.0

    def update(self, reading_s: float, steady_s: float) -> None:
        """Take a reading of the other clock, which may be delayed."""
        least_s = self.ahead_s - self.drift * (steady_s - self._read_at_s)
        self.ahead_s = max(reading_s - steady_s, least_s)
        self._read_at_s = steady_s

    def at(self, steady_s: float) -> float:
        """The time that it shows."""
        return steady_s + self.ahead_s


@attrs.define(eq=False)
class HubClocks:
    """The clocks of one relay's hubs, learned in all its sessions."""

    keys: TrustedKeys
    issuer: str
    cluster_id: str
    bound_s: float
    """How far a hub's clock may differ from the relay's own, either way, in seconds."""
    _clocks: OrderedDict[str, RisingClock] = attrs.field(factory=OrderedDict, init=False, repr=False)

    def of(self, hub: str) -> RisingClock:
        """The clock of a hub whose statement was verified."""
        clock = self._clocks.setdefault(hub, RisingClock(DRIFT))
        self._clocks.move_to_end(hub)
        if len(self._clocks) > HUBS_MAX:
            self._clocks.popitem(last=False)
        return clock

    def fault(self, hub_s: float, own_s: float) -> str:
        """What is wrong with a hub's clock by the relay's own, and the next step; "" if nothing is."""
        ahead_s = hub_s - own_s
        if -self.bound_s <= ahead_s <= self.bound_s:
            return ""
        return (
            f"the hub's clock is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} this "
            f"relay's, more than the {self.bound_s:.0f} s of tunnel.clock_bound_s: "
            "set the clock that is wrong"
        )


@attrs.define(eq=False)
class SessionClock:
    """The hub's clock in one session, by its nonce; unknown until the hub has signed its time for that nonce.

    `own_s` is the relay's wall clock, and `steady_s` its steady one.
    """

    clocks: HubClocks
    nonce: str
    _hub: str = ""
    _clock: RisingClock | None = None

    @property
    def known(self) -> bool:
        """Whether the hub has signed its time."""
        return self._clock is not None

    def update(self, statement: str, *, own_s: float, steady_s: float) -> None:
        """Verify a statement about the hub's time and follow it. Raises TokenError, and then nothing has
        changed.
        """
        clocks = self.clocks
        # A key retires by the later of the hub's time and this time: an earlier statement never revives a
        # key.
        known_s = own_s - clocks.bound_s
        if self._clock is not None:
            known_s = max(known_s, self._clock.at(steady_s))
        try:
            statement_time = read_time(
                statement,
                clocks.keys.at(known_s),
                issuer=clocks.issuer,
                cluster_id=clocks.cluster_id,
                nonce=self.nonce,
            )
        except UnknownKeyError as error:
            raise TokenError(UNTRUSTED_HUB) from error
        fault = clocks.fault(statement_time.at, own_s)
        if fault:
            raise TokenError(fault)
        if clocks.keys.at(max(known_s, statement_time.at)).get(statement_time.signer) is None:
            raise TokenError(UNTRUSTED_HUB)
        if self._hub not in ("", statement_time.hub):
            raise TokenError("the time is from another hub than this session's")
        if self._clock is None:
            self._hub, self._clock = statement_time.hub, clocks.of(statement_time.hub)
        self._clock.update(statement_time.at, steady_s)

    def at(self, own_s: float, steady_s: float) -> float:
        """The hub's time, in epoch seconds; raises TokenError if it is unknown or differs by too much."""
        clock = self._clock
        if clock is None:
            raise TokenError(
                "the hub has not signed its time for this session: "
                "if it is older than this relay, upgrade the hub first"
            )
        # Inlined: this runs for every request.
        hub_s = steady_s + clock.ahead_s
        bound_s = self.clocks.bound_s
        if not -bound_s <= hub_s - own_s <= bound_s:
            raise TokenError(self.clocks.fault(hub_s, own_s))
        return hub_s
