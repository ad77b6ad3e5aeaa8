"""`hawse audit list`: events as a table or as JSON, narrowed by filters, and followed as they are written."""

from __future__ import annotations

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from proxy.cli.audit_names import check_names
from proxy.cli.audit_options import (
    data_folder_options,
    find_trail,
    to_kinds,
    to_limit,
    to_namespaces,
    to_resources,
    to_span,
    to_statuses,
    to_teams,
    to_text,
    to_verbs,
    unavailable,
)
from proxy.cli.trail import record_read

if TYPE_CHECKING:
    from datetime import datetime

    from audit.query import Wanted
    from audit.reader import AuditReader, StoredEvent
    from audit.record import Kind
    from audit.textsearch import Text

# How long an event that was just written stays unseen by --follow.
POLL_S = 0.5
# What a person reads. A program, which asks for JSON, gets all: it would not miss what it does not see.
LIMIT = 50
LIMIT_FOLLOWED = 10

_PLURAL = " (resources are named as the API does, in the plural: pods, deployments)"


@attrs.frozen
class _Chosen:
    """Between which numbers the events stand that are shown."""

    first: int
    last: int
    more: bool = False
    """Older ones match too."""
    searched_from: int | None = None
    """No older event was looked through for the text."""


@click.command("list")
@click.option("--follow", "-f", is_flag=True, help="Go on and print events as they are written.")
@click.option("--agent", metavar="NAME", help="Only what this agent did.")
@click.option("--cluster", metavar="NAME", help="Only what was done on this cluster.")
@click.option(
    "--team", "teams", callback=to_teams, help="Only what agents of these teams did.", metavar="NAME[,NAME]"
)
@click.option(
    "--verb", "verbs", callback=to_verbs, help="Only these verbs: get, delete, …", metavar="NAME[,NAME]"
)
@click.option(
    "--namespace",
    "namespaces",
    callback=to_namespaces,
    help="Only in these namespaces.",
    metavar="NAME[,NAME]",
)
@click.option(
    "--resource",
    "resources",
    callback=to_resources,
    help="Only these resources, as the API names them: pods, pods/exec.",
    metavar="NAME[,NAME]",
)
@click.option(
    "--status",
    "statuses",
    metavar="STATUS[,STATUS]",
    callback=to_statuses,
    help="Only these answers: 403, 4xx; none is no answer.",
)
@click.option(
    "--text",
    metavar="TEXT",
    callback=to_text,
    help="Only with this text, of any case, in path, arguments or reason; it is looked for in the newest "
    "100,000 events that the other options leave.",
)
@click.option("--since", metavar="TIME", help="Only from then on: an age (10m, 2h, 7d) or an RFC 3339 time.")
@click.option(
    "--until",
    metavar="TIME",
    help="Only before then, said as for --since. Not with --follow, which has no end.",
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
    help=f"Only the newest N of all that, or all of it; {LIMIT} without this option, all with --json. With "
    f"--follow, what it begins with: {LIMIT_FOLLOWED}.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with everything in it.")
@data_folder_options
def list_events(
    *,
    follow: bool,
    agent: str | None,
    cluster: str | None,
    teams: tuple[str, ...],
    verbs: tuple[str, ...],
    namespaces: tuple[str, ...],
    resources: tuple[str, ...],
    statuses: tuple[str, ...],
    text: str | None,
    since: str | None,
    until: str | None,
    kinds: tuple[Kind, ...],
    limit: int | str | None,
    as_json: bool,
    config: Path | None,
    data_dir: Path | None,
) -> None:
    """Print events, the newest last. Reading the trail is an event in it as well.

    \b
    hawse audit list --agent builder --since 2h
    hawse audit list --status 403,5xx --namespace app --limit all

    `hawse audit show` has all of one, by the number in the first column.
    """
    from audit.errors import AuditUnavailable
    from audit.mask import Masks
    from audit.members import Members
    from audit.names import NameReader
    from audit.query import Wanted
    from audit.textsearch import Text
    from proxy.hub.home.datadir import DataDir

    if until is not None and follow:
        raise click.UsageError("--until ends where --follow goes on: say one of them")
    begin, end = to_span(since, until)
    path, org, mask = find_trail(config, data_dir)
    wanted = Wanted(agent, cluster, kinds, begin, end, Members(verbs, namespaces, resources, teams, statuses))
    sought = None if text is None else Text(text)
    # A search text may be a secret, and this reading is an event of the trail: mask it.
    told = None if text is None else Masks(mask).values([text])[0]
    filters = _recorded(wanted, told, limit)
    newest = _newest(limit, follow=follow, as_json=as_json)
    try:
        reader = NameReader(path)
        try:
            # First, so that an unreadable trail is one error, without a warning that nothing was recorded.
            reader.last()
            # Before this reading is an event, since the newest events are those of others.
            chosen = None if newest is None else _choose(reader, wanted, sought, newest)
            record_read(path, org, "audit list --follow" if follow else "audit list", filters)
            quiet = check_names(reader, DataDir(path.parent).store_file, agent, cluster, teams)
            _say(*quiet)
            chosen = chosen or _choose(reader, wanted, sought, None)
            shown = _print(_events(reader, wanted, sought, chosen, follow=follow), as_json=as_json)
            if not shown and not quiet and limit != 0:
                _say("no event matches" + (_PLURAL if resources else ""))
            _say_what_is_left_out(reader, chosen, limit, shown, begin)
        finally:
            reader.close()
    except AuditUnavailable as error:
        raise unavailable(error) from error


def _recorded(wanted: Wanted, text: str | None, limit: int | str | None) -> dict[str, str | None]:
    """What is asked for, as the event of this reading has it."""
    members = wanted.members
    return {
        "agent": wanted.agent,
        "cluster": wanted.cluster,
        "team": ",".join(members.teams) or None,
        "verb": ",".join(members.verbs) or None,
        "namespace": ",".join(members.namespaces) or None,
        "resource": ",".join(members.resources) or None,
        "status": ",".join(members.statuses) or None,
        "text": text,
        "since": wanted.since.isoformat() if wanted.since else None,
        "until": wanted.until.isoformat() if wanted.until else None,
        "kind": ",".join(wanted.kinds) or None,
        "limit": str(limit) if limit is not None else None,
    }


def _newest(limit: int | str | None, *, follow: bool, as_json: bool) -> int | None:
    """How many of the newest are shown; None is all."""
    if isinstance(limit, int):
        return limit
    if limit is not None or as_json:
        return None
    return LIMIT_FOLLOWED if follow else LIMIT


def _choose(reader: AuditReader, wanted: Wanted, text: Text | None, newest: int | None) -> _Chosen:
    """Find where the newest so many stand."""
    from audit.textsearch import TEXT_EVENTS_MAX

    if text is None:
        older = None if newest is None else reader.beyond(wanted, newest)
        first, last = reader.span(wanted)
        return _Chosen(first, last) if older is None else _Chosen(older + 1, last, more=True)
    older = reader.beyond(wanted, TEXT_EVENTS_MAX)
    first, last = reader.span(wanted)
    searched_from = None if older is None else older + 1
    first = max(first, searched_from or first)
    if newest is None:
        return _Chosen(first, last, searched_from=searched_from)
    # One more than is shown, to know whether there are more.
    found = deque(
        (stored.seq for stored in reader.events(first, last, wanted) if text.is_in(stored.body)),
        maxlen=newest + 1,
    )
    more = len(found) > newest
    first = found[0] + 1 if more else first
    return _Chosen(first, last, more=more, searched_from=searched_from)


def _events(
    reader: AuditReader, wanted: Wanted, text: Text | None, chosen: _Chosen, *, follow: bool
) -> Iterator[StoredEvent]:
    first, last = chosen.first, chosen.last
    while True:
        for stored in reader.events(first, last, wanted):
            if text is None or text.is_in(stored.body):
                yield stored
        if not follow:
            return
        first = max(first, last + 1)
        while (last := reader.last()) < first:
            time.sleep(POLL_S)


def _print(found: Iterator[StoredEvent], *, as_json: bool) -> int:
    """Print events as they come; returns how many there were."""
    from audit.display import TerminalTable, header_line, json_line, table_line

    line: Callable[[StoredEvent], str]
    if as_json:
        line = json_line
    elif sys.stdout.isatty():
        table = TerminalTable(shutil.get_terminal_size().columns)
        line = table.lines
        click.echo(table.header())
    else:
        line = table_line
        click.echo(header_line())
    shown = 0
    for stored in found:
        click.echo(line(stored))
        shown += 1
    return shown


def _say_what_is_left_out(
    reader: AuditReader, chosen: _Chosen, limit: int | str | None, shown: int, begin: datetime | None
) -> None:
    """Tell a person of older events, of those that no text was looked for in, and of those that are gone."""
    from audit.display import decoded
    from audit.textsearch import TEXT_EVENTS_MAX

    if chosen.more and limit is None:
        _say(f"these are the newest {shown}: --limit {10 * LIMIT}, or --limit all, shows more")
    if chosen.searched_from is not None:
        [oldest] = reader.query(after_seq=chosen.searched_from - 1, limit=1)
        event = decoded(oldest)
        when = f", from {event.ts:%Y-%m-%d %H:%M:%S} UTC on" if event is not None else ""
        _say(
            f"the text was looked for in the newest {TEXT_EVENTS_MAX:,} events that the other options "
            f"leave{when}: narrow them, by --agent or --until, to look further back"
        )
    since = reader.began()
    if since is not None and ((not shown and limit != 0) or (begin is not None and begin < since)):
        _say(f"the trail begins at {since:%Y-%m-%d %H:%M:%S} UTC")


def _say(*sentences: str) -> None:
    for sentence in sentences:
        click.echo(f"hawse: {sentence}", err=True)
