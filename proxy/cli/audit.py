"""`hawse audit`: read the trail on the hub's machine, straight from its file, whether the hub runs or not."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from proxy.cli.errors import CommandError, ConfigurationFaults
from proxy.cli.trail import local_event, record_read

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from audit.reader import AuditReader, StoredEvent
    from audit.record import Event, Kind
    from audit.wanted import Wanted

P = ParamSpec("P")
R = TypeVar("R")

# How long an event that was just written stays unseen by --follow.
POLL_S = 0.5

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AGE = re.compile(r"([0-9]{1,6})([smhd])")


def parse_since(text: str, now: datetime) -> datetime:
    """Read a point in time: how long ago (90s, 10m, 2h, 7d), or an RFC 3339 time. Raises ValueError."""
    age = _AGE.fullmatch(text)
    try:
        when = now - timedelta(**{_UNITS[age[2]]: int(age[1])}) if age else datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        when = datetime.min
    if when.tzinfo is None:
        raise ValueError("expected an age such as 10m, 2h or 7d, or a time such as 2026-01-31T08:00:00Z")
    return when


def to_moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Read an option's value as a point in time."""
    try:
        return None if value is None else parse_since(value, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


def to_span(since: str | None, until: str | None) -> tuple[datetime | None, datetime | None]:
    """Read both ends of a span, which must not be empty; raises click.UsageError."""
    # One for both, or equal ages would be some microseconds apart.
    now = datetime.now(UTC)
    ends = []
    for option, text in (("--since", since), ("--until", until)):
        try:
            ends.append(None if text is None else parse_since(text, now))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=f"'{option}'") from error
    begin, end = ends
    if begin is not None and end is not None and begin >= end:
        raise click.UsageError(f"--since {since!a} is not before --until {until!a}: nothing is between them")
    return begin, end


def to_kinds(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[Kind, ...]:
    """Read an option's values as kinds of events."""
    from audit.record import Kind

    known = {kind.value: kind for kind in Kind}
    for name in value:
        if name not in known:
            raise click.BadParameter(f"{name!a} is none of {', '.join(known)}", ctx, param)
    return tuple(known[name] for name in value)


def to_age(ctx: click.Context, param: click.Parameter, value: str) -> datetime:
    """Read an option's value as an age, and return when that was."""
    if not _AGE.fullmatch(value):
        raise click.BadParameter("expected an age such as 90d or 36h", ctx, param)
    moment = to_moment(ctx, param, value)
    assert moment is not None
    return moment


def data_folder_options(command: Callable[P, R]) -> Callable[P, R]:
    """The options by which a command finds the trail."""
    for option in (
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path, readable=False),
            metavar="DIR",
            help="The hub's data folder, instead of the configured one.",
        ),
        click.option(
            "--config",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="The hub's configuration (it names the data folder).",
        ),
    ):
        command = option(command)
    return command


@click.group()
def audit() -> None:
    """Read the audit trail on the hub's machine, and shorten it."""


@audit.command("list")
@click.option("--follow", "-f", is_flag=True, help="Go on and print events as they are written.")
@click.option("--agent", metavar="NAME", help="Only what this agent did.")
@click.option("--cluster", metavar="NAME", help="Only what was done on this cluster.")
@click.option(
    "--since",
    metavar="TIME",
    help="Only from then on: an age (10m, 2h, 7d) or an RFC 3339 time.",
)
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
    # SQLite counts no further than 2^63.
    type=click.IntRange(0, 10**9),
    metavar="N",
    help="Only the newest N of all that; with --follow, only the newest N to begin with.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with everything in it.")
@data_folder_options
def list_events(
    *,
    follow: bool,
    agent: str | None,
    cluster: str | None,
    since: str | None,
    until: str | None,
    kinds: tuple[Kind, ...],
    limit: int | None,
    as_json: bool,
    config: Path | None,
    data_dir: Path | None,
) -> None:
    """Print events, the oldest first. Reading the trail is an event in it as well."""
    from audit.display import header_line, json_line, table_line
    from audit.errors import AuditUnavailable
    from audit.reader import AuditReader
    from audit.wanted import Wanted

    if until is not None and follow:
        raise click.UsageError("--until ends where --follow goes on: say one of them")
    begin, end = to_span(since, until)
    path, org = find_trail(config, data_dir)
    wanted = Wanted(agent, cluster, kinds, begin, end)
    filters = {
        "agent": agent,
        "cluster": cluster,
        "since": begin.isoformat() if begin else None,
        "until": end.isoformat() if end else None,
        "kind": ",".join(kinds) or None,
        "limit": str(limit) if limit is not None else None,
    }
    try:
        reader = AuditReader(path)
        try:
            # So that a trail that cannot be read is told as that, and not as one that takes no event first.
            reader.last()
            # Whoever asks for the newest does not mean this reading.
            newest = None if limit is None else reader.span(wanted, limit)
            record_read(path, org, "audit list --follow" if follow else "audit list", filters)
            if not as_json:
                click.echo(header_line())
            for stored in _events(reader, wanted, newest or reader.span(wanted), follow=follow):
                click.echo(json_line(stored) if as_json else table_line(stored))
        finally:
            reader.close()
    except AuditUnavailable as error:
        raise _unavailable(error) from error
    except KeyboardInterrupt:
        # The usual end of --follow; what else is ended by it is not whole.
        if not follow:
            raise


@audit.command()
@click.option(
    "--keep",
    "before",
    required=True,
    metavar="AGE",
    callback=to_age,
    help="Remove what is older: 90d, 36h.",
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what is removed to a new file first, a line of JSON an event.",
)
@click.option("--yes", is_flag=True, help="Do not ask; who has no terminal is never asked.")
@data_folder_options
def prune(
    *, before: datetime, archive: Path | None, yes: bool, config: Path | None, data_dir: Path | None
) -> None:
    """Remove the oldest events; a hub may run meanwhile.

    An event stays in the trail that says which they were, with the SHA-256 of their lines, as
    `audit list --json` prints them and --archive writes them.
    """
    from audit.errors import AuditUnavailable
    from audit.reader import AuditReader
    from audit.record import Kind
    from audit.retention import PrunableStore, Removal
    from proxy.cli.admin.output import confirm
    from proxy.cli.progress import progress

    path, org = find_trail(config, data_dir)
    # It is recorded, where a path that depends on a working folder would say nothing.
    archive = archive and archive.absolute()

    def tell(removal: Removal) -> Event:
        kept = f" archive={archive}" if archive is not None else ""
        return local_event(Kind.AUDIT_PRUNED, f"{removal}{kept}", org=org)

    try:
        # Which is no reason to make a trail.
        AuditReader(path).close()
        confirm(f"Remove all events of before {before:%Y-%m-%d %H:%M} UTC from {path}?", yes=yes)
        store = PrunableStore(path)
        try:
            with progress() as told:
                removal = store.prune(before, tell, archive, told)
        finally:
            store.close()
    except AuditUnavailable as error:
        raise _unavailable(error) from error
    except FileExistsError as error:
        raise CommandError(f"{archive} exists already, so nothing is removed: choose another name") from error
    except OSError as error:
        raise CommandError(f"cannot write {archive}, so nothing is removed: {error.strerror}") from error
    click.echo("no event is that old" if removal is None else f"removed {removal}")


def find_trail(config: Path | None, data_dir: Path | None) -> tuple[Path, str]:
    """The trail's file, and its organisation if a configuration says it; raises what a user is told."""
    from proxy.configuration import ConfigError
    from proxy.hub.config import load
    from proxy.hub.datadir import DataDir

    if data_dir is not None:
        return DataDir(data_dir).audit_file, ""
    try:
        settings = load(config)
    except ConfigError as error:
        raise ConfigurationFaults("hub", error.faults) from error
    return DataDir(settings.data_dir).audit_file, settings.org


def _unavailable(error: Exception) -> CommandError:
    from audit.errors import NoTrail

    hint = ": name the hub's data folder by --data-dir, or its file by --config"
    return CommandError(f"{error}{hint if isinstance(error, NoTrail) else ''}")


def _events(
    reader: AuditReader, wanted: Wanted, span: tuple[int, int], *, follow: bool
) -> Iterator[StoredEvent]:
    first, last = span
    yield from reader.events(first, last, wanted)
    while follow:
        first = last + 1
        while (last := reader.last()) < first:
            time.sleep(POLL_S)
        yield from reader.events(first, last, wanted)
