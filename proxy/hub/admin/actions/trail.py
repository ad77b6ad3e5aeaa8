"""Actions on the audit trail: searches, single events, followers and exports."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Literal, TypeVar

import attrs
import msgspec

from audit.calls import FoundCall
from audit.display import decoded
from audit.errors import NoSuchCall
from audit.members import Members
from audit.query import Query
from audit.reader import StoredEvent
from audit.record import Event, Kind
from audit.search.cursors import BadCursor, Mark, parse_position, position_text
from audit.search.filters import Filters
from audit.search.search import Newest, SearchReader
from audit.textsearch import Text
from proxy.hub.admin.trail.export import Export, csv_header, csv_rows, json_lines
from proxy.hub.admin.trail.follow import Follower
from proxy.hub.admin.trail.names import check_names
from proxy.hub.admin.trail.rows import Detail, Neighbours, Page, detail_of, rows_of, time_of
from proxy.hub.admin.trail.service import TrailService
from proxy.hub.admin.verbs.answers import Done, Download, Followed
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.verb import verb
from proxy.hub.store.directory import Changes
from proxy.hub.store.engines.errors import InvalidError, NotFoundError
from proxy.hub.store.roles import Role

T = TypeVar("T")

# A page for people has 200 rows; a command may ask for more.
EVENTS_MAX = 500
EVENTS = 200
# A token is good for a minute, and its event may be written some seconds late.
_TOKEN_BEFORE = timedelta(minutes=2)
# On each side of an event.
NEIGHBOURS = 5

_Name = Annotated[str, msgspec.Meta(description="one name")]
_Names = Annotated[str, msgspec.Meta(description="names, separated by commas")]
_Time = Annotated[str, msgspec.Meta(description="a time (RFC 3339), or an age: 90s, 10m, 2h, 7d")]


class FilterQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The filters of a search. An event matches if it passes all of them; an empty one is none."""

    agent: _Name = ""
    cluster: _Name = ""
    team: _Names = ""
    namespace: _Names = ""
    resource: _Names = ""
    verb: _Names = ""
    status: Annotated[str, msgspec.Meta(description="403, 4xx, none; separated by commas")] = ""
    kind: _Names = ""
    actor: Annotated[str, msgspec.Meta(description="a name, or TYPE:NAME, such as operator:ada")] = ""
    q: Annotated[str, msgspec.Meta(description="a text in path, arguments, reasons or rule")] = ""
    since: _Time = ""
    until: _Time = ""

    def filters(self, call: Call) -> Filters:
        """Parse the filters; raises InvalidError."""
        texts = {field.name: getattr(self, field.name) for field in attrs.fields(Filters)}
        try:
            return Filters.parse(texts, datetime.fromtimestamp(call.at, UTC))
        except ValueError as error:
            raise InvalidError(str(error)) from error


class EventsQuery(FilterQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of a search."""

    before: Annotated[str, msgspec.Meta(description="the cursor of older events")] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=EVENTS_MAX)] = EVENTS


class StreamQuery(FilterQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of a follower."""

    after: Annotated[str, msgspec.Meta(description="the cursor after which it begins")] = ""


class ExportQuery(FilterQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The query of an export."""

    format: Literal["jsonl", "csv"] = "jsonl"


@attrs.frozen
class TrailActions:
    """The audit trail. Each of its reads is an event of the trail."""

    directory: Changes
    trail: TrailService

    @verb(
        "GET",
        "/v1/audit/events",
        "list",
        "audit",
        Role.AUDITOR,
        query=EventsQuery,
        with_call=True,
        answer=Page,
    )
    async def events(self, query: EventsQuery, call: Call) -> Done:
        """Search the trail, the newest event first. A search ends after two seconds, and can be continued."""
        filters = query.filters(call)
        before = None if not query.before else _cursor("before", parse_position, query.before)
        text = Text(filters.q) if filters.q else None
        wanted = filters.query()
        current = self.directory.current

        def search(reader: SearchReader, until_s: float) -> Page:
            page = reader.newest(wanted, text=text, before=before, limit=query.limit, until_s=until_s)
            # An unknown name finds no events, which must not look like a well-behaved agent.
            # Beside the team of some events, another name of a team may be misspelt.
            found = bool(page.rows or page.older) and len(filters.team) < 2
            notes = [] if found or before else check_names(reader, current, filters, until_s)
            return _page(page, notes)

        page = await self.trail.searches.search(call.operator, search)
        note = self._noted("audit list", filters, limit=query.limit)
        return Done(msgspec.structs.asdict(page), note=note)

    @verb("GET", "/v1/audit/events/{id}", "get", "audit", Role.AUDITOR, with_call=True, answer=Detail)
    async def event(self, eid: str, call: Call) -> Done:
        """Show one call, or another event, and the events next to it."""
        detail = await self.trail.searches.search(call.operator, partial(_detail, eid))
        return Done(msgspec.structs.asdict(detail), note=f"audit show eid={detail.eid or eid}")

    @verb("GET", "/v1/audit/stream", "watch", "audit", Role.AUDITOR, query=StreamQuery, with_call=True)
    async def stream(self, query: StreamQuery, call: Call) -> Followed:
        """Follow the trail by server-sent events. A client goes on without gap by their ids."""
        filters = query.filters(call)
        after = call.last_event_id or query.after
        if after:
            mark = _cursor("after", Mark.parse, after)
            # Of another trail, an error is better than a stream that never has an event.
            await self.trail.searches.step(lambda reader: _cursor("after", partial(_peek, reader), mark))
        else:
            mark = await self.trail.searches.step(SearchReader.now)
        text = Text(filters.q) if filters.q else None
        follower = Follower(self.trail.searches, self.trail.poll, filters.query(), text, mark)
        return Followed(follower, note=self._noted("audit list --follow", filters))

    @verb("GET", "/v1/audit/export", "export", "audit", Role.AUDITOR, query=ExportQuery, with_call=True)
    async def export(self, query: ExportQuery, call: Call) -> Download:
        """Download events, the oldest first, as JSON Lines or CSV."""
        filters = query.filters(call)
        text = Text(filters.q) if filters.q else None
        last = await self.trail.searches.step(SearchReader.last)
        as_csv = query.format == "csv"
        chunks = Export(
            self.trail.searches,
            filters.query(),
            text,
            csv_rows if as_csv else json_lines,
            last,
            csv_header() if as_csv else b"",
        )
        made = datetime.fromtimestamp(call.at, UTC)
        return Download(
            chunks,
            "text/csv; charset=utf-8" if as_csv else "application/jsonl",
            f"hawse-audit-{made:%Y%m%d-%H%M%S}.{query.format}",
            note=self._noted("audit export", filters, format=query.format),
        )

    def _noted(self, command: str, filters: Filters, **others: object) -> str:
        """The command and its filters, for the event of this read. A text may be a secret."""
        items = {**dict(filters.items()), **{name: str(value) for name, value in others.items()}}
        if filters.q:
            [items["q"]] = self.trail.masks.values([filters.q])
        return " ".join([command, *(f"{name}={value}" for name, value in items.items())])


def _cursor(name: str, parse: Callable[..., T], *cursor: object) -> T:
    try:
        return parse(*cursor)
    except BadCursor as error:
        raise InvalidError(f"{name}: {error}") from error


def _page(found: Newest, notes: list[str]) -> Page:
    return Page(
        events=rows_of(found.rows),
        older=None if found.older is None else position_text(found.older),
        follow=found.mark.text,
        stopped=found.stopped,
        searched_to=None if found.searched_to is None else time_of(found.searched_to),
        began=None if found.began is None else time_of(found.began),
        notes=notes,
    )


def _peek(reader: SearchReader, mark: Mark) -> None:
    reader.after(mark, limit=1, until_s=time.monotonic())


def _detail(eid: str, reader: SearchReader, until_s: float) -> Detail:
    try:
        call = reader.lookup(eid)
    except ValueError as error:
        raise InvalidError(
            f"{error}: expected an id such as 0199a1b2-4c5d-7e6f-8a9b-0c1d2e3f4a5b, at least its first eight "
            "characters, or a number of the list"
        ) from error
    except NoSuchCall as error:
        raise NotFoundError(str(error)) from error
    return detail_of(call, _neighbours(call, reader, until_s), _issued(call, reader, until_s))


def _neighbours(call: FoundCall, reader: SearchReader, until_s: float) -> Neighbours:
    """Find the events of the same session next to a call, or those of the same actor without a session."""
    event = decoded(call.rows[0])
    if event is None or not event.actor.name:
        return Neighbours("actor", [], [])
    by, query = ("session", _of_session(event)) if event.actor.jti else ("actor", _of_actor(event))
    before, after = reader.beside(
        query, call.rows[0].seq, call.rows[-1].seq, limit=NEIGHBOURS, until_s=until_s
    )
    return Neighbours(by, rows_of(before.rows), rows_of(after.rows))


def _issued(call: FoundCall, reader: SearchReader, until_s: float) -> StoredEvent | None:
    """Find the event of a call's token."""
    event = decoded(call.rows[0])
    if event is None or not event.actor.jti or event.kind is Kind.TOKEN_ISSUED:
        return None
    began = event.ts - timedelta(milliseconds=event.dur_ms or 0)
    query = attrs.evolve(
        _of_session(event), kinds=[Kind.TOKEN_ISSUED], since=began - _TOKEN_BEFORE, until=event.ts
    )
    seq = call.rows[0].seq
    before, _ = reader.beside(query, seq, seq, limit=1, until_s=until_s)
    return before.rows[0] if before.rows else None


def _of_session(event: Event) -> Query:
    return Query(event.agent or None, members=Members(tokens=[event.actor.jti]))


def _of_actor(event: Event) -> Query:
    return Query(event.agent or None, members=Members(actors=[f"{event.actor.type}:{event.actor.name}"]))
