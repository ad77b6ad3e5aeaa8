"""The filters of a search, as people and the admin API write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import datetime

import attrs

from audit.members import Members
from audit.query import Query
from audit.record import Kind
from audit.search.terms import NAMESPACE, RESOURCE, STATUS, TEAM, parse_since
from audit.textsearch import TEXT_CHARACTERS_MAX

# Of one filter. A search looks for each of them in each event.
VALUES_MAX = 32
# A user's name is part of an operator's, and is bounded by the system at 256.
NAME_CHARACTERS_MAX = 512

_VERB = re.compile(r"[a-z][-a-z]{0,62}")


@attrs.frozen
class Filters:
    """The filters of one search; an event matches if it passes all of them."""

    agent: str = ""
    cluster: str = ""
    team: tuple[str, ...] = ()
    namespace: tuple[str, ...] = ()
    resource: tuple[str, ...] = ()
    verb: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    kind: tuple[str, ...] = ()
    actor: str = ""
    q: str = ""
    since: datetime | None = None
    until: datetime | None = None

    @classmethod
    def parse(cls, values: Mapping[str, str], now: datetime) -> Filters:
        """Read the filters from texts by their names; an empty text is no filter.

        Raises ValueError, whose message begins with the name of the filter.
        """
        found: dict[str, object] = {}
        for name, text in values.items():
            if not text:
                continue
            try:
                found[name] = _parsed(name, text, now)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        filters = cls(**found)  # type: ignore[arg-type]  # _parsed returns each field's type
        begin, end = filters.since, filters.until
        if begin is not None and end is not None and begin >= end:
            raise ValueError(f"since: {values['since']!a} is not before until: {values['until']!a}")
        return filters

    def query(self) -> Query:
        """The filters but `q`, as a query of the trail."""
        return Query(
            self.agent or None,
            self.cluster or None,
            [Kind(kind) for kind in self.kind],
            self.since,
            self.until,
            Members(
                self.verb,
                self.namespace,
                self.resource,
                self.team,
                self.status,
                [self.actor] if self.actor else (),
            ),
        )

    def items(self) -> list[tuple[str, str]]:
        """The names and texts of the filters that are set, in one form for all ways to write them."""
        return [(name, text) for name, text in map(_item, attrs.asdict(self).items()) if text]


def _item(item: tuple[str, object]) -> tuple[str, str]:
    name, value = item
    if isinstance(value, datetime):
        return name, value.isoformat().replace("+00:00", "Z")
    return name, ",".join(value) if isinstance(value, tuple) else str(value or "")


def _parsed(name: str, text: str, now: datetime) -> object:
    match name:
        case "since" | "until":
            return parse_since(text, now)
        case "q":
            if len(text) > TEXT_CHARACTERS_MAX:
                raise ValueError(f"expected at most {TEXT_CHARACTERS_MAX} characters, not {len(text)}")
            return text
        case "agent" | "cluster" | "actor":
            if len(text) > NAME_CHARACTERS_MAX:
                raise ValueError(f"a name has at most {NAME_CHARACTERS_MAX} characters, not {len(text)}")
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
            raise ValueError(f"{name!a} is not {what}" if name else f"{text!a} has an empty name")
    return names


_PATTERNS = {
    "team": TEAM,
    "namespace": NAMESPACE,
    "resource": RESOURCE,
    "verb": (_VERB, "a verb, such as get or delete"),
    "status": STATUS,
}
