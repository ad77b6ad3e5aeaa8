"""How people write the times, names and statuses of a search.

Every command of `hawse audit` loads this at its start, so it needs the standard library alone.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_AGE = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SLUG = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_RESOURCE = re.compile(r"[a-z0-9][-.a-z0-9]{0,252}(?:/[a-z0-9][-a-z0-9/]{0,252})?")
_STATUS = re.compile(r"[1-5](?:[0-9]{2}|xx)|none")

# Each with what it is, for an error.
TEAM = (_SLUG, "a team's name, without the organisation")
NAMESPACE = (_SLUG, "a namespace's name, such as kube-system")
RESOURCE = (_RESOURCE, "a resource in the API's form, such as pods or pods/log")
STATUS = (_STATUS, "a status such as 403, a class such as 4xx, or none")


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
