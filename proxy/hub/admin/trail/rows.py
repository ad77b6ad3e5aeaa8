"""The trail's events in the admin API's answers: the stored event, and the texts of a table's row."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec

from audit.calls import FoundCall
from audit.display import decoded
from audit.kubectl import kubectl_line, kubectl_words
from audit.page import page_fields
from audit.reader import StoredEvent
from audit.record import ActorType, Event
from audit.wording import actor_of, ending_of, request_of, result_of, took, why_of

# What an event's surroundings are: a person looks for the cause before it, and for what came of it.
_AROUND = timedelta(minutes=5)


class Row(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One event. Its texts are not escaped, and clients choose much of them."""

    number: str
    """The number that `hawse audit show` takes."""
    eid: str = ""
    time: str = ""
    kind: str = ""
    phase: str = ""
    actor: str = ""
    agent: str = ""
    cluster: str = ""
    request: str = ""
    result: str = ""
    took: str = ""
    ending: str = ""
    why: str = ""
    count: int = 1
    event: msgspec.Raw
    """The whole event, as `hawse audit list --json` prints it."""


class Field(msgspec.Struct, frozen=True):
    """A name and its texts on the page of one event."""

    name: str
    lines: list[str]


class Neighbours(msgspec.Struct, frozen=True):
    """The events next to one, of the same session or of the same actor."""

    by: str
    before: list[Row]
    """The newest first."""
    after: list[Row]
    """The oldest first."""


class Page(msgspec.Struct, frozen=True):
    """A page of a search."""

    events: list[Row]
    """The newest first."""
    older: str | None
    """The cursor of older matches, for `before`; null if there are none."""
    follow: str
    """The cursor of newer events, for `after` of the stream."""
    stopped: str
    """Why the search ended early: `deadline`, `text`, or empty."""
    searched_to: str | None
    """The time that a search reached which ended early."""
    began: str | None
    """When the oldest event of the trail happened."""
    notes: list[str]


class Detail(msgspec.Struct, frozen=True):
    """One call, or another event with a single row."""

    eid: str
    open: bool
    """Whether it has no end yet."""
    rows: list[Row]
    fields: list[Field]
    """The page of `hawse audit show`."""
    kubectl: str
    command: str
    """The command line that shows it."""
    list_command: str
    """The command line that lists its surroundings."""
    neighbours: Neighbours
    issued: Row | None
    """The event of the token that the call came with, which names the credential; null if it is not there."""


def row_of(stored: StoredEvent) -> Row:
    """The row of an event; of one that a newer hawse has written in another form, without texts."""
    event = decoded(stored)
    whole = msgspec.Raw(stored.line)
    if event is None:
        return Row(number=stored.number, event=whole)
    return Row(
        number=stored.number,
        eid=event.eid,
        time=time_of(event.ts),
        kind=event.kind,
        phase=event.phase,
        actor=actor_of(event),
        agent=event.agent,
        cluster=event.cluster_name,
        request=request_of(event),
        result=result_of(event),
        took=took(event.dur_ms),
        ending=ending_of(event),
        why=why_of(event),
        count=event.count,
        event=whole,
    )


def rows_of(stored: Iterable[StoredEvent]) -> list[Row]:
    """The rows of events."""
    return [row_of(each) for each in stored]


def detail_of(call: FoundCall, neighbours: Neighbours, issued: StoredEvent | None) -> Detail:
    """Everything that the trail has about one call."""
    event = decoded(call.rows[-1])
    rows = rows_of(call.rows)
    kubectl = ""
    if event is not None and (words := kubectl_words(event)):
        kubectl = kubectl_line(["kubectl", "--context", event.cluster_name, *words])
    return Detail(
        eid=rows[-1].eid,
        open=call.open,
        rows=rows,
        fields=[Field(name, lines) for name, lines in page_fields(call)],
        kubectl=kubectl,
        command=f"hawse audit show {rows[-1].eid or rows[-1].number}",
        list_command="" if event is None else _list_command(event),
        neighbours=neighbours,
        issued=None if issued is None else row_of(issued),
    )


def _list_command(event: Event) -> str:
    words = ["hawse", "audit", "list"]
    if event.agent:
        words += ["--agent", event.agent]
    elif event.actor.type is not ActorType.ANONYMOUS:
        words += ["--kind", event.kind]
    if event.cluster_name:
        words += ["--cluster", event.cluster_name]
    since, until = (time_of(event.ts + around) for around in (-_AROUND, _AROUND))
    return kubectl_line([*words, "--since", since, "--until", until])


def time_of(when: datetime) -> str:
    """A time in UTC, with milliseconds."""
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z"
