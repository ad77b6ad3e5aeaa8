"""Verifies a relay's hello token: its cluster, and the clock that dated it."""

from __future__ import annotations

from auth.hubtime import hub_time, is_hub_time
from auth.jws import AudienceError, TokenError, UnknownKeyError
from auth.keys import PublicKey
from auth.tokens import HelloClaims, verify_hello
from proxy.hub.store.entities import Snapshot

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
