from __future__ import annotations

import pytest

from auth.assertion import LIFETIME_S, sign_for_a_minute
from auth.jws import AudienceError, TokenError, UnknownKeyError
from auth.keys import PublicKey, SigningKey
from auth.tokens import issue_hello
from proxy.hub.peers.hello import CLOCKS_APART_S, HUB_HELLO_TYPE, hub_party, issue_hub_hello, verify_hub_hello

NOW = 1_800_000_000.5
KEY = SigningKey.generate()
SENDER, READER = hub_party("0badcafe", "boot-1"), hub_party("deadbeef", "boot-2")
PARTIES = {"iss": SENDER, "sub": SENDER, "aud": READER, "jti": "j1"}


def find(kid: str) -> tuple[str, PublicKey] | None:
    return (SENDER, KEY.public) if kid == KEY.kid else None


def hello(key: SigningKey = KEY, *, sender: str = SENDER, reader: str = READER) -> str:
    return issue_hub_hello(key, sender=sender, reader=reader, jti="j1", now=NOW)


def test_a_hello_is_read_back_as_the_boot_that_owns_the_key() -> None:
    claims = verify_hub_hello(hello(), find, reader=READER, now=NOW)
    assert (claims.party, claims.jti) == (SENDER, "j1")
    assert claims.kept_until == int(NOW) + LIFETIME_S + CLOCKS_APART_S


@pytest.mark.parametrize(
    ("token", "error"),
    [
        (hello(SigningKey.generate()), UnknownKeyError),
        (hello(reader=hub_party("deadbeef", "boot-1")), AudienceError),
        (hello(reader=hub_party("0badcafe", "boot-2")), AudienceError),
        (hello(sender=hub_party("0badcafe", "boot-0")), TokenError),
        (issue_hello(KEY, cluster_id="c", hub_url=READER, instance="i", jti="j", now=NOW), TokenError),
        (sign_for_a_minute(KEY.key, KEY.kid, HUB_HELLO_TYPE, NOW, {**PARTIES, "sub": READER}), TokenError),
    ],
    ids=["key", "boot", "hub", "issuer", "kind", "subject"],
)
def test_a_hello_of_others_or_to_others_is_refused(token: str, error: type[TokenError]) -> None:
    with pytest.raises(error):
        verify_hub_hello(token, find, reader=READER, now=NOW)


def test_a_hello_is_good_for_a_minute_by_clocks_that_are_a_minute_apart() -> None:
    for late in (1 - CLOCKS_APART_S, LIFETIME_S + CLOCKS_APART_S - 1):
        verify_hub_hello(hello(), find, reader=READER, now=NOW + late)
    for late in (-1 - CLOCKS_APART_S, LIFETIME_S + CLOCKS_APART_S + 1):
        with pytest.raises(TokenError, match="clocks"):
            verify_hub_hello(hello(), find, reader=READER, now=NOW + late)
