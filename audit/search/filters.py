"""The filters of a search, as people and the admin API write them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import attrs

from audit.members import Members
from audit.query import Query
from audit.record import Kind
from audit.search.values import parse_value


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
                found[name] = parse_value(name, text, now)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
        filters = cls(**found)  # type: ignore[arg-type]  # parse_value returns each field's type
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
