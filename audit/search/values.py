"""The values of a search's filters, as people write them: in options, forms and queries of the admin API.

Imports nothing that takes long: the command line parses its options by it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from audit.record import Kind

# Of one filter. A search looks for each of them in each event.
VALUES_MAX = 32
# A user's name is part of an operator's, and is bounded by the system at 256.
NAME_CHARACTERS_MAX = 512
# More than people type; a target has up to 64 KiB.
TEXT_CHARACTERS_MAX = 1024

_AGE = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SLUG = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_VERB = re.compile(r"[a-z][-a-z]{0,62}")
_RESOURCE = re.compile(r"[a-z0-9][-.a-z0-9]{0,252}(?:/[a-z0-9][-a-z0-9/]{0,252})?")
_STATUS = re.compile(r"[1-5](?:[0-9]{2}|xx)|none")


def parse_since(text: str, now: datetime) -> datetime:
    """Parse a point in time: an age (90s, 10m, 2h, 7d), or an RFC 3339 time. Raises ValueError."""
    age = _AGE.fullmatch(text)
    try:
        when = now - timedelta(**{_UNITS[age[2]]: int(age[1])}) if age else datetime.fromisoformat(text)
        # Comparisons of times near the year 1 or 9999 overflow in another zone.
        when = when.astimezone(UTC) if when.tzinfo is not None else datetime.min
    except (ValueError, OverflowError):
        when = datetime.min
    if when.tzinfo is None:
        raise ValueError(
            f"{text!a} is neither an age such as 10m, 2h or 7d, nor a time with a zone, such as "
            "2026-01-31T08:00:00Z or 2026-01-31T08:00:00+01:00"
        )
    return when


def parse_value(name: str, text: str, now: datetime) -> object:
    """Parse the text of one filter. Raises ValueError."""
    match name:
        case "since" | "until":
            return parse_since(text, now)
        case "q":
            if not 0 < len(text) <= TEXT_CHARACTERS_MAX:
                raise ValueError(f"expected 1 to {TEXT_CHARACTERS_MAX} characters, not {len(text)}")
            return text
        case "agent" | "cluster" | "actor":
            if len(text) > NAME_CHARACTERS_MAX:
                raise ValueError(f"a name has at most {NAME_CHARACTERS_MAX} characters, not {len(text)}")
            if "\0" in text:
                # PostgreSQL has no such text.
                raise ValueError(f"{text!a} is no name")
            return text
        case "kind":
            return _listed(text, {kind.value for kind in Kind}, f"one of {', '.join(Kind)}")
    return _listed(text, *_PATTERNS[name])


def _listed(text: str, allowed: re.Pattern[str] | Collection[str], what: str) -> tuple[str, ...]:
    """Split names at commas; raises ValueError for a name that is not allowed."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if len(names) > VALUES_MAX:
        raise ValueError(f"expected at most {VALUES_MAX} names, not {len(names)}")
    for name in names:
        if not (allowed.fullmatch(name) if isinstance(allowed, re.Pattern) else name in allowed):
            empty = f"{text!a} has an empty name: expected NAME or NAME,NAME"
            raise ValueError(f"{name!a} is not {what}" if name else empty)
    return names


_PATTERNS = {
    "team": (_SLUG, "a team's name, without the organisation"),
    "namespace": (_SLUG, "a namespace's name, such as kube-system"),
    "resource": (_RESOURCE, "a resource in the API's form, such as pods or pods/log"),
    "verb": (_VERB, "a verb, such as get or delete"),
    "status": (_STATUS, "a status such as 403, a class such as 4xx, or none"),
}
