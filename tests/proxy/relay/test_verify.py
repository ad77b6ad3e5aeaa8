from __future__ import annotations

from collections.abc import Callable

import pytest

from auth import tokens
from auth.jws import TokenError
from auth.key_rotation import TrustedKeys
from auth.keys import KeySet, SigningKey
from auth.principal import Principal
from proxy.message.failure import Processed, StreamCode
from proxy.relay import verify
from proxy.relay.verify import Refused, Verifier
from tunnel import Context
from tunnel.protocol.schedule import Group

HUB = "https://hub.example"
KEY = SigningKey.generate()
PROBE = Principal(agent_id="0193-a1", name="probe", org="acme", teams=("platform",))
NOW = 1_800_000_000.0
NONCE = "0123456789abcdef" * 2


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def token(
    *,
    key: SigningKey = KEY,
    issuer: str = HUB,
    cluster_id: str = "c1",
    now: float = NOW,
    jti: str = "j",
    nonce: str = "",
) -> bytes:
    return tokens.issue_relay(
        key,
        issuer=issuer,
        cluster_id=cluster_id,
        principal=PROBE,
        session="s1",
        jti=jti,
        now=now,
        nonce=nonce,
    ).encode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(clock: Clock) -> Verifier:
    return Verifier(TrustedKeys(KeySet([KEY.public]), HUB), HUB, "c1", clock)


def context_of(payload: bytes) -> Context:
    return Context(1, 1, payload, share=Group(1))


Read = Callable[[Verifier, bytes], tokens.RelayClaims]


def by_context(verifier: Verifier, token: bytes) -> tokens.RelayClaims:
    return verifier.of_context(context_of(token))


def by_token(verifier: Verifier, token: bytes) -> tokens.RelayClaims:
    return verifier.of_token(token)


both_ways = pytest.mark.parametrize("read", [by_context, by_token])


@both_ways
def test_a_token_of_the_hub_says_who_acts(verifier: Verifier, read: Read) -> None:
    claims = read(verifier, token())
    assert (claims.user, claims.groups) == ("agent:probe", ("acme/platform",))


# C04, C11, C31: what is refused, and that the refusal promises that nothing was sent


@both_ways
@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"x",
        b"\xff\xfe",
        token()[:-4],
        token(key=SigningKey.generate()),
        token(issuer=HUB + "/"),
        token(cluster_id="c2"),
        token(now=NOW - 66),
        token(now=NOW + 7),
        tokens.issue_access(
            KEY, issuer=HUB, principal=PROBE, cluster="prod", sid="s", jti="j", now=NOW
        ).encode(),
    ],
)
def test_what_is_no_relay_token_for_this_cluster_is_refused(
    verifier: Verifier, read: Read, bad: bytes
) -> None:
    with pytest.raises(Refused) as caught:
        read(verifier, bad)
    failure = caught.value.failure
    assert (failure.code, failure.processed) == (StreamCode.UNAUTHENTICATED, Processed.NO)


@both_ways
def test_the_skew_is_named(verifier: Verifier, clock: Clock, read: Read) -> None:
    clock.now = NOW - 90
    with pytest.raises(Refused, match="90 s in the future by its verifier's clock"):
        read(verifier, token())


@both_ways
def test_in_direct_mode_a_tunnels_token_is_worth_nothing(verifier: Verifier, read: Read) -> None:
    with pytest.raises(Refused, match="for a tunnel's session, and this relay is in direct mode"):
        read(verifier, token(nonce=NONCE))


@both_ways
@pytest.mark.parametrize(
    ("nonce", "reason"), [("", "upgrade the hub first"), (NONCE[::-1], "for another session")]
)
def test_in_a_tunnel_only_a_token_of_the_session_counts(
    verifier: Verifier, read: Read, nonce: str, reason: str
) -> None:
    verifier.nonce = NONCE
    assert read(verifier, token(nonce=NONCE)).user == "agent:probe"
    with pytest.raises(Refused, match=reason) as caught:
        read(verifier, token(nonce=nonce))
    failure = caught.value.failure
    assert (failure.code, failure.processed) == (StreamCode.UNAUTHENTICATED, Processed.NO)


@both_ways
def test_a_time_that_becomes_unknown_refuses_what_was_verified(
    verifier: Verifier, clock: Clock, read: Read
) -> None:
    """The relay's own clock was set so far off that the hub's may not count any more."""
    context, stamped = context_of(token()), token()
    verifier.of_context(context)
    verifier.of_token(stamped)

    def no_time() -> float:
        raise TokenError("the clocks differ")

    verifier.hub_clock = no_time
    for ask in (lambda: verifier.of_context(context), lambda: verifier.of_token(stamped)):
        with pytest.raises(Refused, match="the clocks differ") as caught:
            ask()
        assert caught.value.failure.code is StreamCode.UNAUTHENTICATED


def test_a_context_is_verified_once_and_expires(
    verifier: Verifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(token())
    claims = verifier.of_context(context)
    verified = count_verifications(monkeypatch)
    clock.now = NOW + 64.9
    assert verifier.of_context(context) is claims
    assert verified == []
    clock.now = NOW + 65
    with pytest.raises(Refused, match="expired 5 s ago") as caught:
        verifier.of_context(context)
    # So the hub mints another, and tells its time before it.
    assert caught.value.failure.code is StreamCode.UNAUTHENTICATED


def test_a_direct_token_is_verified_once_and_expires(
    verifier: Verifier, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = verifier.of_token(token())
    verified = count_verifications(monkeypatch)
    clock.now = NOW + 64.9
    assert verifier.of_token(token()) is claims
    assert verified == []
    clock.now = NOW + 65
    with pytest.raises(Refused, match="expired"):
        verifier.of_token(token())


def test_a_refused_context_is_tried_again_once_the_clock_is_known(verifier: Verifier, clock: Clock) -> None:
    context = context_of(token())
    clock.now = NOW - 90
    with pytest.raises(Refused):
        verifier.of_context(context)
    clock.now = NOW
    assert verifier.of_context(context).user == "agent:probe"


def test_a_foreign_note_on_a_context_is_no_identity(verifier: Verifier) -> None:
    context = context_of(b"x")
    context.note = "agent:admin"
    with pytest.raises(Refused):
        verifier.of_context(context)


def test_the_table_of_direct_tokens_is_bounded_and_drops_the_least_used(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "CACHED_TOKENS_MAX", 2)
    first, second, third = (token(jti=str(number)) for number in range(3))
    verifier.of_token(first)
    verifier.of_token(second)
    verifier.of_token(first)
    verifier.of_token(third)
    verified = count_verifications(monkeypatch)
    verifier.of_token(first)
    verifier.of_token(third)
    assert verified == []
    verifier.of_token(second)
    assert len(verified) == 1


def test_a_refused_token_is_not_kept(verifier: Verifier) -> None:
    for number in range(10):
        with pytest.raises(Refused):
            verifier.of_token(token(cluster_id="c2", jti=str(number)))
    assert len(verifier._cache) == 0


def count_verifications(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = tokens.verify_relay

    def counting(
        token: str, keys: KeySet, *, issuer: str, cluster_id: str, now: float, nonce: str, leeway_s: float
    ) -> tokens.RelayClaims:
        seen.append(token)
        return real(
            token, keys, issuer=issuer, cluster_id=cluster_id, now=now, nonce=nonce, leeway_s=leeway_s
        )

    monkeypatch.setattr(tokens, "verify_relay", counting)
    return seen
