"""Rotation of the hub's signing keys: a key names its successor in a statement that it signs.

A relay gets its keys when its cluster is enrolled, and accepts no others. When the hub changes its key, the
old key signs a statement: it names the successor, and the time from which the old key is no longer trusted. A
hub keeps its statements and sends them to each relay. A relay that has any key of the chain can follow it to
the end. So a relay needs no storage: after a restart it follows the chain again from its pinned keys.

A key has one successor. A thief of an old key can sign another statement with it. A relay that knows the
first statement refuses the second, but a relay that has just started does not know it yet. So after the theft
of a key, rotation alone is not enough: give the relays new pins.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import attrs

from auth.jws import Claims, TokenError
from auth.keys import KEYS_MAX, KeyFormatError, KeySet, PublicKey, SigningKey
from auth.signed import open_signed, sign

ROTATION_TYPE = "hub-key+jwt"
# Maximum statements that a hub keeps and sends at once, some 30 KiB. Above it, the oldest is dropped, and a
# relay that is pinned to a key before it needs its manifests again.
ROTATIONS_MAX = 64
# Maximum statements that one relay process learns: hourly rotations for six weeks, some 1 MiB. It bounds a
# malicious hub that signs without end.
LEARNED_MAX = 1024


def issue_rotation(
    key: SigningKey, *, issuer: str, successor: PublicKey, now: float, retires_at: float
) -> str:
    """Sign, with `key`, that `successor` replaces it, and that only the successor is trusted from
    `retires_at` on.

    `retires_at` is in epoch seconds.
    """
    return sign(
        key,
        ROTATION_TYPE,
        {
            "iss": issuer,
            "jwk": successor.to_jwk(),
            "iat": math.floor(now),
            "retires": math.ceil(retires_at),
        },
    )


@attrs.frozen
class KeyRotation:
    """The contents of a statement, as the hub reads its own."""

    signer: str
    """The `kid` of the key that is replaced."""
    successor: str
    issued_at: int
    retires_at: int


def read_rotation(statement: str, find: Callable[[str], PublicKey | None]) -> KeyRotation:
    """Read a statement, verified with the key that `find` returns for its `kid`; raises TokenError."""
    return _read(statement, find)[0]


class TrustedKeys:
    """The hub keys that a relay trusts: its pins, and the keys that their statements lead to."""

    def __init__(self, pinned: KeySet, issuer: str) -> None:
        self._issuer = issuer
        self._keys = {key.kid: key for key in pinned}
        self._retires: dict[str, int] = {}
        self._successors: dict[str, str] = {}
        # SHA-256 of each statement: a repeated chain costs a hash each and no signature check.
        self._learned: set[bytes] = set()
        self._current = pinned
        self._current_until = math.inf

    def learn(self, statement: str) -> bool:
        """Learn one statement; returns whether it was new.

        A statement that is signed with an unknown key is ignored: a chain may begin before our pins. Raises
        TokenError for an invalid statement, and for one that contradicts an earlier statement of its signer.
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
            rotation, key, issuer = _read(statement, find)
        except TokenError:
            if unknown:
                return False
            raise
        if issuer != self._issuer:
            raise TokenError("the statement about a new key is from another issuer")
        self._accept(rotation, key)
        self._learned.add(digest)
        return True

    def at(self, now: float) -> KeySet:
        """The keys that are trusted at a time, in epoch seconds of the hub's clock; never empty."""
        if now >= self._current_until:
            self._settle(now)
        return self._current

    def _accept(self, rotation: KeyRotation, key: PublicKey) -> None:
        named = self._successors.get(rotation.signer)
        if named is not None:
            raise TokenError(
                f"key {rotation.signer} has named {named} as its successor, and now names {key.kid}: either "
                "the hub was restored from before a rotation: restart the relay; or the key is in other "
                "hands: apply what `hawse admin cluster key NAME` prints on the hub"
            )
        known = self._keys.get(key.kid)
        circle = key.kid == rotation.signer or key.kid in self._successors
        if circle or (known is not None and known != key):
            # A circle would retire every key, and one kid is one key.
            raise TokenError(f"key {rotation.signer} names {key.kid} as its successor, which is not new")
        if len(self._learned) >= LEARNED_MAX:
            raise TokenError(f"more than {LEARNED_MAX} changes of the hub's key since this relay started")
        self._keys[key.kid] = key
        self._successors[rotation.signer] = key.kid
        self._retires[rotation.signer] = rotation.retires_at
        # `at` computes the set again at its next call, by the hub's clock.
        self._current_until = -math.inf

    def _settle(self, now: float) -> None:
        current = [key for kid, key in self._keys.items() if self._retires.get(kid, math.inf) > now]
        # The last key of a chain is never retired, so the set is never empty. The newest keys come last.
        self._current = KeySet(current[-KEYS_MAX:])
        self._current_until = min((at for at in self._retires.values() if at > now), default=math.inf)


def _read(statement: str, find: Callable[[str], PublicKey | None]) -> tuple[KeyRotation, PublicKey, object]:
    """Return a statement's contents, the new key and the issuer; raises TokenError."""
    claims, signer = open_signed(statement, find, ROTATION_TYPE)
    try:
        key = PublicKey.from_jwk(claims.get("jwk"))
    except KeyFormatError as exc:
        raise TokenError(f"the statement's new key cannot be used: {exc}") from exc
    rotation = KeyRotation(signer, key.kid, _time(claims, "iat"), _time(claims, "retires"))
    return rotation, key, claims.get("iss")


def _time(claims: Claims, name: str) -> int:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise TokenError(f'the statement\'s "{name}" is missing or not an integer time')
    return value
