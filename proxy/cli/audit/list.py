"""`hawse audit list`: events as a table or as JSON, filtered, and optionally followed as they are written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from proxy.cli.audit.local_events import record_read
from proxy.cli.audit.names import check_names
from proxy.cli.audit.options import (
    FoundTrail,
    find_trail,
    note_source,
    reach_of,
    to_kinds,
    to_limit,
    to_names,
    to_span,
    to_text,
    to_verbs,
    trail_options,
    unavailable,
)
from proxy.cli.audit.printing import (
    LIMIT,
    LIMIT_FOLLOWED,
    newest_shown,
    print_began,
    print_events,
    print_more,
    print_none_found,
    print_notes,
    print_text_bound,
)

if TYPE_CHECKING:
    from datetime import datetime

    from audit.names import NameReader
    from audit.postgres.search import PostgresNameReader
    from audit.query import Query
    from audit.reader import StoredEvent, TrailReader
    from audit.search.filters import Filters
    from audit.textsearch import Text
    from proxy.hub.home.datadir import DataDir


@attrs.frozen
class _Range:
    """The sequence numbers of the events to show."""

    first: int
    last: int
    more: bool = False
    """Older events match as well."""
    searched_from: int | None = None
    """The text search stopped at this event; None if it covered all events."""


@click.command("list")
@click.option("--follow", "-f", is_flag=True, help="Keep running, and print new events as they are written.")
@click.option("--agent", metavar="NAME", help="Only events of this agent.")
@click.option("--cluster", metavar="NAME", help="Only events on this cluster.")
@click.option(
    "--actor", metavar="[TYPE:]NAME", help="Only events of this actor, such as operator:ada or relay:prod."
)
@click.option(
    "--team", "teams", callback=to_names, help="Only events of agents in these teams.", metavar="NAME[,NAME]"
)
@click.option(
    "--verb", "verbs", callback=to_verbs, help="Only these verbs: get, delete, …", metavar="NAME[,NAME]"
)
@click.option(
    "--namespace",
    "namespaces",
    callback=to_names,
    help="Only in these namespaces.",
    metavar="NAME[,NAME]",
)
@click.option(
    "--resource",
    "resources",
    callback=to_names,
    help="Only these resources, in the plural as in the API: pods, pods/exec.",
    metavar="NAME[,NAME]",
)
@click.option(
    "--status",
    "statuses",
    metavar="STATUS[,STATUS]",
    callback=to_names,
    help="Only these response statuses: 403, 4xx. `none` selects events without one.",
)
@click.option(
    "--text",
    metavar="TEXT",
    callback=to_text,
    help="Only events with this text (case-insensitive) in path, arguments or reason. Searches the newest "
    "100,000 events that match the other options.",
)
@click.option(
    "--since", metavar="TIME", help="Only events since then: an age (10m, 2h, 7d) or an RFC 3339 time."
)
@click.option(
    "--until",
    metavar="TIME",
    help="Only events before then, as for --since. Not with --follow.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    callback=to_kinds,
    help="Only events of this kind (call, auth.failed, admin.action, …); repeatable.",
)
@click.option(
    "--limit",
    "-n",
    metavar="N|all",
    callback=to_limit,
    help=f"Show only the newest N events. Default: {LIMIT}, or all with --json. With --follow, the number of "
    f"past events to start with; default {LIMIT_FOLLOWED}.",
)
@click.option("--json", "as_json", is_flag=True, help="Print complete events, one JSON object a line.")
@trail_options
def list_events(
    *,
    follow: bool,
    agent: str | None,
    cluster: str | None,
    actor: str | None,
    teams: tuple[str, ...],
    verbs: tuple[str, ...],
    namespaces: tuple[str, ...],
    resources: tuple[str, ...],
    statuses: tuple[str, ...],
    text: str | None,
    since: str | None,
    until: str | None,
    kinds: tuple[str, ...],
    limit: int | str | None,
    as_json: bool,
    config: Path | None,
    data_dir: Path | None,
    hub: str | None,
) -> None:
    """Print events, newest last. Each read of the trail is recorded in the trail.

    \b
    hawse audit list --agent builder --since 2h
    hawse audit list --status 403,5xx --namespace app --limit all

    To see one event in full, pass its number (first column) to `hawse audit show`.
    """
    from audit.search.filters import Filters

    if until is not None and follow:
        raise click.UsageError("--until does not go with --follow: use one of them")
    begin, end = to_span(since, until)
    filters = Filters(
        agent or "", cluster or "", teams, namespaces, resources, verbs, statuses, kinds, actor or "",
        text or "", begin, end,
    )  # fmt: skip
    reach = reach_of(config, data_dir, hub)
    if reach.remote:
        from proxy.cli.audit.remote import list_remote

        list_remote(reach.client(), filters, limit, follow=follow, as_json=as_json)
        return
    found = find_trail(config, data_dir)
    by_option = config is not None or data_dir is not None
    _list_here(found, by_option, filters, limit, follow=follow, as_json=as_json)


@click.command(
    params=[option for option in list_events.params if option.name not in {"follow", "until"}],
)
@click.pass_context
def follow(ctx: click.Context, /, **options: object) -> None:
    """Print new events as they are written, until Ctrl-C.

    The same as `hawse audit list --follow`.
    """
    ctx.invoke(list_events, follow=True, until=None, **options)


def _list_here(
    found: FoundTrail,
    by_option: bool,
    filters: Filters,
    limit: int | str | None,
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """List events of the trail on this machine; raises CommandError."""
    from audit.errors import AuditUnavailable
    from audit.mask import Masks
    from proxy.hub.home.trails import open_names

    query = filters.query()
    # The search text may be a secret, and this read is recorded in the trail: mask it.
    masked = Masks(found.mask).values([filters.q])[0] if filters.q else None

    def record() -> None:
        record_read(
            found.place,
            found.org,
            "audit list --follow" if follow else "audit list",
            _recorded(query, masked, limit),
        )

    try:
        reader = open_names(found.place)
        try:
            note_source(found, by_option=by_option)
            text = filters.q or None
            _list(reader, found.data, query, text, limit, record, follow=follow, as_json=as_json)
        finally:
            reader.close()
    except AuditUnavailable as error:
        raise unavailable(error) from error


def _list(
    reader: NameReader | PostgresNameReader,
    data: DataDir,
    query: Query,
    text: str | None,
    limit: int | str | None,
    record: Callable[[], None],
    *,
    follow: bool,
    as_json: bool,
) -> None:
    """Print the events of a query, and the notes on what is missing. `record` records this read."""
    from audit.textsearch import Text

    members = query.members
    search = None if text is None else Text(text)
    newest = newest_shown(limit, follow=follow, as_json=as_json)
    # Check first, so that an unreadable trail is one error, without a second one for this read.
    reader.last()
    # Find the newest events before this read adds an event of its own.
    chosen = None if newest is None else _choose(reader, query, search, newest)
    record()
    notes = check_names(reader, data, query.agent, query.cluster, members.teams)
    print_notes(*notes)
    chosen = chosen or _choose(reader, query, search, None)
    shown = print_events(_events(reader, query, search, chosen, follow=follow), as_json=as_json)
    if not shown and not notes and limit != 0:
        print_none_found(by_resource=bool(members.resources))
    _print_omissions(reader, chosen, limit, shown, query.since)


def _recorded(query: Query, text: str | None, limit: int | str | None) -> dict[str, str | None]:
    """Return the filters, as the event of this read records them."""
    members = query.members
    return {
        "agent": query.agent,
        "cluster": query.cluster,
        "actor": ",".join(members.actors) or None,
        "team": ",".join(members.teams) or None,
        "verb": ",".join(members.verbs) or None,
        "namespace": ",".join(members.namespaces) or None,
        "resource": ",".join(members.resources) or None,
        "status": ",".join(members.statuses) or None,
        "text": text,
        "since": query.since.isoformat() if query.since else None,
        "until": query.until.isoformat() if query.until else None,
        "kind": ",".join(query.kinds) or None,
        "limit": str(limit) if limit is not None else None,
    }


def _choose(reader: TrailReader, query: Query, text: Text | None, newest: int | None) -> _Range:
    """Find the range of the newest matching events."""
    from audit.textsearch import TEXT_EVENTS_MAX

    if text is None:
        older = None if newest is None else reader.beyond(query, newest)
        first, last = reader.span(query)
        return _Range(first, last) if older is None else _Range(older + 1, last, more=True)
    older = reader.beyond(query, TEXT_EVENTS_MAX)
    first, last = reader.span(query)
    searched_from = None if older is None else older + 1
    first = max(first, searched_from or first)
    if newest is None:
        return _Range(first, last, searched_from=searched_from)
    # One more than shown, to learn whether there are more.
    found = deque(
        (stored.seq for stored in reader.events(first, last, query) if text.is_in(stored.body)),
        maxlen=newest + 1,
    )
    more = len(found) > newest
    first = found[0] + 1 if more else first
    return _Range(first, last, more=more, searched_from=searched_from)


def _events(
    reader: TrailReader, query: Query, text: Text | None, chosen: _Range, *, follow: bool
) -> Iterator[StoredEvent]:
    found = reader.follow(chosen.first, query) if follow else reader.events(chosen.first, chosen.last, query)
    for stored in found:
        if text is None or text.is_in(stored.body):
            yield stored


def _print_omissions(
    reader: TrailReader, chosen: _Range, limit: int | str | None, shown: int, begin: datetime | None
) -> None:
    """Mention matching events that are not shown, the end of the text search, and pruned events."""
    from audit.display import decoded

    if chosen.more and limit is None:
        print_more(shown)
    if chosen.searched_from is not None:
        [oldest] = reader.query(after_seq=chosen.searched_from - 1, limit=1)
        event = decoded(oldest)
        print_text_bound(None if event is None else event.ts)
    print_began(reader.began(), begin, shown, limit)
