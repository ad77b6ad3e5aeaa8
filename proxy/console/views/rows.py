"""Events of the trail as rows of a table.

The API has put each event into the words of `hawse audit list`. Clients choose much of the text, and a target
has up to 64 KiB: a row holds the beginning of a text, and the event's own page all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import attrs
import msgspec

# Characters of a text in a row: some three lines of a wide table.
TEXT_CHARACTERS_MAX = 240

_TONES = {"1": "ok", "2": "ok", "3": "", "4": "warn", "5": "bad"}


@attrs.frozen
class Row:
    """One event, or the newer of the two events of a call."""

    eid: str
    number: str
    time: str
    """In RFC 3339, UTC; empty if it is unknown."""
    actor: str
    agent: str
    """The agent's name; empty if the actor is none."""
    cluster: str
    kind: str
    """Empty for a call."""
    what: str
    why: str
    result: str
    tone: str
    """How the result looks: `ok`, `warn`, `bad`, `open` or empty."""
    took: str

    @property
    def key(self) -> str:
        """The same for both events of a call."""
        return self.eid or self.number

    @property
    def href(self) -> str:
        """The path of the event's page."""
        return event_path(self.key)


def event_path(eid: str) -> str:
    """The path of an event's page."""
    return f"/audit/{quote(eid, safe='')}"


def row_of(listed: Mapping[str, Any]) -> Row:
    """Make the row of an event as the API lists it."""
    event = listed["event"]
    eid, time = listed["eid"], listed["time"]
    if not listed["kind"]:
        # A newer hub wrote the event in a form that this one can't put into words.
        what, why, result, tone = msgspec.json.encode(event).decode("utf-8"), "", "", ""
        eid, time = str(event.get("eid", "")), _time(event.get("ts"))
    else:
        what, why = _texts(listed)
        result, tone = _result(listed, event)
    return Row(
        eid=eid,
        number=listed["number"],
        time=time,
        # Most actors are agents, and `local:USER` is always an operator: the type would only repeat itself.
        actor=cut(listed["agent"] or listed["actor"].replace("operator:local:", "local:")),
        agent=listed["agent"],
        cluster=listed["cluster"],
        kind="" if listed["kind"] == "call" else listed["kind"],
        what=cut(what),
        why=cut(why),
        result=result,
        tone=tone,
        took="" if listed["took"] == "-" else listed["took"],
    )


def _time(text: object) -> str:
    """A time of an event in another form; empty if it is none."""
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC).isoformat().replace("+00:00", "Z")
    except ValueError:
        return ""


def _texts(listed: Mapping[str, Any]) -> tuple[str, str]:
    """What was asked, and why it failed or ended."""
    what, why = listed["request"], listed["why"]
    if not what:
        # The hub's own events have a note and no request.
        what, why = why, ""
    if listed["ending"]:
        what = f"{what} ({listed['ending']})"
    if listed["count"] > 1:
        what = f"{listed['count']:,} times {what}".rstrip()
    return what, why


def _result(listed: Mapping[str, Any], event: Mapping[str, Any]) -> tuple[str, str]:
    """The result in a word or two, and its tone."""
    result = listed["result"]
    effect = event.get("decision", {}).get("effect")
    # The status of a refusal by the hub is that of a refusal by the cluster's own RBAC.
    if effect == "deny":
        return "denied", "bad"
    if effect == "ask" and event.get("resp", {}).get("processed") == "no" and result == "403":
        return "asked", "warn"
    if listed["phase"] in {"intent", "start"} and result == "-":
        return "began", "open"
    words = {"?": ("unknown", "bad"), "none": ("no answer", "warn"), "-": ("", "")}
    return words.get(result) or (result, _TONES.get(result[:1], "warn"))


def without_begun(rows: Iterable[Row]) -> list[Row]:
    """Leave out the first row of each call whose end is listed as well; the newest row comes first."""
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(row.key, row)
    return [*kept.values()]


def sentence(text: str) -> str:
    """An error of the API, as a sentence begins."""
    return text[:1].upper() + text[1:]


def cut(text: str, characters_max: int = TEXT_CHARACTERS_MAX) -> str:
    """The beginning of a text, with a mark where it was cut."""
    return text if len(text) <= characters_max else f"{text[:characters_max]}…"
