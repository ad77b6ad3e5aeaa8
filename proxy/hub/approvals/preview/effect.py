"""The effect of a call in a form that is compared and stored, and that reveals no value. Pure.

The effect is over real values, also of Secrets. A plain digest of a short password could be found by trying
all of them. So each request has a salt of its own, which is stored beside the digests in the request's row,
and nowhere else: the trail and the approvers get digests in which the salt is hashed with the rest
(`NewRequest.shown`). A key that all hubs share would have to be created, sealed, rotated and restored, and
equal passwords in two requests would have equal digests.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from typing import Final, Self

import attrs

from proxy.hub.approvals.preview.values import canonical

# The objects of a deletecollection that an effect can hold. More cannot be approved.
OBJECTS_MAX: Final = 1500
SALT_BYTES: Final = 16
# 128 bits of a digest are enough where the other side cannot choose the salt.
_DIGEST_BYTES: Final = 16
_TEXT = re.compile(r"1:([0-9a-f]{32}):([0-9a-f]{32})(?:\[((?:[0-9a-f]{32})(?:,[0-9a-f]{32})*)?\])?")


@attrs.frozen
class Effect:
    """An effect: a digest of its facts, and digests of the objects of a deletecollection."""

    salt: bytes
    facts: str
    objects: frozenset[str] | None = None
    """None for a call that does not act on a set of objects."""

    @classmethod
    def of(cls, salt: bytes, facts: object, objects: Iterable[str] | None = None) -> Self:
        """Return the effect with these facts, which are JSON, and these objects, by their uids."""
        digests = None if objects is None else frozenset(_digest(salt, ["object", uid]) for uid in objects)
        return cls(salt, _digest(salt, ["facts", facts]), digests)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the effect of its text; None if it is none."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        salt, facts, objects = match.groups()
        listed = "[" in text
        digests = frozenset(objects.split(",") if objects else ()) if listed else None
        return cls(bytes.fromhex(salt), facts, digests)

    def __str__(self) -> str:
        objects = "" if self.objects is None else f"[{','.join(sorted(self.objects))}]"
        return f"1:{self.salt.hex()}:{self.facts}{objects}"


def _digest(salt: bytes, value: object) -> str:
    return hmac.digest(salt, canonical(value), "sha256")[:_DIGEST_BYTES].hex()


def effect_fits(granted: str, now: str) -> bool:
    """Return whether a call with the effect `now` may use a grant for the effect `granted`.

    `now` must have been made with the salt of `granted` (`Previewer.preview(…, like=granted)`). The effects
    must be equal. For a deletecollection, a subset of the objects is the same effect.
    """
    before, after = Effect.parse(granted), Effect.parse(now)
    if before is None or after is None:
        return False
    if (before.salt, before.facts) != (after.salt, after.facts):
        return False
    if before.objects is None or after.objects is None:
        return before.objects is after.objects
    return after.objects <= before.objects
