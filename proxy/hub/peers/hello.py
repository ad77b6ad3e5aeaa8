"""The hello of one hub to another: `hub-hello+jwt`, signed by the key that the sender's own row states.

Each boot of a hub has a key of its own, so a hello names boots: its sender's and its reader's. It is good for
one link of these two processes, and useless to any later one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import attrs

from auth.jws import TokenError
from auth.keys import PublicKey, SigningKey
from auth.signed import check_parties, check_times, open_owned, sign_for_a_minute, text_claim

HUB_HELLO_TYPE: Final = "hub-hello+jwt"
# A hub that is more than 30 s off the database's clock does not start, so two are at most this far apart.
CLOCKS_APART_S: Final = 60.0


@attrs.frozen
class HubHelloClaims:
    """The claims of a verified hello. The verifier keeps `jti` until `kept_until`, and refuses to see it
    twice.
    """

    party: str
    """The sender, see `hub_party`."""
    jti: str
    kept_until: float


def hub_party(hub: str, boot: str) -> str:
    """Return the name of one boot of a hub, as issuer and as audience."""
    return f"urn:hawse:hub:{hub}:{boot}"


def issue_hub_hello(key: SigningKey, *, sender: str, reader: str, jti: str, now: float) -> str:
    """Sign a hello to another hub; both are named by `hub_party`."""
    return sign_for_a_minute(
        key, HUB_HELLO_TYPE, now, {"iss": sender, "sub": sender, "aud": reader, "jti": jti}
    )


def verify_hub_hello(
    token: str, find_key: Callable[[str], tuple[str, PublicKey] | None], *, reader: str, now: float
) -> HubHelloClaims:
    """Verify a hello at the hub that it names; raises TokenError.

    `find_key` maps a `kid` to the party that the key belongs to and the key. The caller refuses a repeated
    `jti`.
    """
    claims, _, owner = open_owned(token, find_key, HUB_HELLO_TYPE)
    # The key's owner determines the sender; the token's own claims must agree with it.
    check_parties(claims, issuer=owner, audience=reader)
    if text_claim(claims, "sub") != owner:
        raise TokenError("the token's subject is not its issuer")
    _, expires_at = check_times(claims, now, leeway_s=CLOCKS_APART_S)
    return HubHelloClaims(owner, text_claim(claims, "jti"), expires_at + CLOCKS_APART_S)
