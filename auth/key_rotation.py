"""How trust in the hub's signing keys passes on: a key names its successor in a statement that it signs.

A relay is given keys when its cluster is enrolled, and takes no other from anybody's hand. When the hub
changes its key, the old one signs a statement: this is my successor, and from then on I am not to be trusted.
A hub keeps its statements and says them to each relay; who holds any key of the chain can walk to its end.
So a relay needs no place to write to: after a restart it walks again from what it was given.

A key has one successor. Whoever steals an old key can sign another statement with it, and a relay that knows
the first one refuses it; one that has just started does not know it yet. That is why a stolen key is answered
by giving the relays new pins, and a rotation alone is not enough.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import attrs

from auth.jws import Claims, TokenError
from auth.keys import KEYS_MAX, KeyFormatError, KeySet, PublicKey, SigningKey
from auth.signed import open_signed, sign

SUCCESSION_TYPE = "hub-key+jwt"
# What a hub says at once, some 30 KiB. Beyond, the oldest is forgotten, and a relay that was given the key
# before it needs its manifests again.
SUCCESSION_MAX = 64
# What one relay process learns in its life: hourly rotations for six weeks, in some 1 MiB. A bound against a
# hub that signs without end, not for one that rotates.
LEARNED_MAX = 1024


def issue_succession(
    key: SigningKey, *, issuer: str, successor: PublicKey, now: float, retires_at: float
) -> str:
    """Sign, with `key`, that `successor` takes its place, and from `retires_at` (epoch seconds) on alone."""
    return sign(
        key,
        SUCCESSION_TYPE,
        {
            "iss": issuer,
            "jwk": successor.to_jwk(),
            "iat": math.floor(now),
            "retires": math.ceil(retires_at),
        },
    )


@attrs.frozen
class Succession:
    """What a statement says, as the hub reads its own."""

    signer: str
    """The `kid` of the key that gives its place up."""
    successor: str
    issued_at: int
    retires_at: int


def read_succession(statement: str, find: Callable[[str], PublicKey | None]) -> Succession:
    """Read a statement, verified by the key that `find` returns for its `kid`; raises TokenError."""
    return _read(statement, find)[0]


class TrustedKeys:
    """The hub keys that a relay trusts: its pins, and whatever their statements have led to."""

    def __init__(self, pinned: KeySet, issuer: str) -> None:
        self._issuer = issuer
        self._keys = {key.kid: key for key in pinned}
        self._retires: dict[str, int] = {}
        self._successors: dict[str, str] = {}
        # By digest: a chain that is said again costs a hash and no signature.
        self._learned: set[bytes] = set()
        self._current = pinned
        self._current_until = math.inf

    def learn(self, statement: str) -> bool:
        """Take in one statement; returns whether it told anything new.

        One that is signed by a key which is not known here tells nothing: a chain may begin before our pins.
        Raises TokenError for one that is not valid, or that contradicts what its signer has said before.
        """
        digest = hashlib.sha256(statement.encode("utf-8", "replace")).digest()
        if digest in self._learned:
            return False
        unknown = False

        def find(kid: str) -> PublicKey | None:
            nonlocal unknown
            key = self._keys.get(kid)
            unknown = key is None
            return key

        try:
            said, key, issuer = _read(statement, find)
        except TokenError:
            if unknown:
                return False
            raise
        if issuer != self._issuer:
            raise TokenError("the statement about a new key is from another issuer")
        self._accept(said, key)
        self._learned.add(digest)
        return True

    def at(self, now: float) -> KeySet:
        """The keys that are trusted at a time, in epoch seconds of the hub's clock; never none."""
        if now >= self._current_until:
            self._settle(now)
        return self._current

    def _accept(self, said: Succession, key: PublicKey) -> None:
        named = self._successors.get(said.signer)
        if named is not None:
            raise TokenError(
                f"key {said.signer} has named {named} as its successor, and now names {key.kid}: either the "
                "hub was restored from before a rotation: restart the relay; or the key is in other hands: "
                "apply what `hawse admin cluster key NAME` prints on the hub"
            )
        known = self._keys.get(key.kid)
        circle = key.kid == said.signer or key.kid in self._successors
        if circle or (known is not None and known != key):
            # A circle would leave no key at all, and one kid is one key.
            raise TokenError(f"key {said.signer} names {key.kid} as its successor, which was there before")
        if len(self._learned) >= LEARNED_MAX:
            raise TokenError(f"more than {LEARNED_MAX} changes of the hub's key since this relay started")
        self._keys[key.kid] = key
        self._successors[said.signer] = key.kid
        self._retires[said.signer] = said.retires_at
        # Worked out anew at the next question, by its clock.
        self._current_until = -math.inf

    def _settle(self, now: float) -> None:
        current = [key for kid, key in self._keys.items() if self._retires.get(kid, math.inf) > now]
        # The ends of the chains are never retired, so there is always one; the newest stand last.
        self._current = KeySet(current[-KEYS_MAX:])
        self._current_until = min((at for at in self._retires.values() if at > now), default=math.inf)


def _read(statement: str, find: Callable[[str], PublicKey | None]) -> tuple[Succession, PublicKey, object]:
    """What a statement says, the key that it is about, and its issuer; raises TokenError."""
    claims, signer = open_signed(statement, find, SUCCESSION_TYPE)
    try:
        key = PublicKey.from_jwk(claims.get("jwk"))
    except KeyFormatError as exc:
        raise TokenError(f"the statement's new key cannot be used: {exc}") from exc
    said = Succession(signer, key.kid, _time(claims, "iat"), _time(claims, "retires"))
    return said, key, claims.get("iss")


def _time(claims: Claims, name: str) -> int:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TokenError(f'the statement\'s "{name}" is missing or not an integer time')
    return value
