"""`hawse audit`: read the trail on the hub's machine, straight from its file, whether the hub runs or not."""

from __future__ import annotations

import os
import pwd
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.errors import CommandError, ConfigurationFaults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audit.store import AuditReader, StoredEvent

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


@click.group()
def audit() -> None:
    """Read the audit trail on the hub's machine."""


@audit.command("list")
@click.option("--follow", "-f", is_flag=True, help="Go on and print events as they are written.")
@click.option("--agent", metavar="NAME", help="Only what this agent did.")
@click.option("--cluster", metavar="NAME", help="Only what was done on this cluster.")
@click.option(
    "--since",
    metavar="TIME",
    callback=to_moment,
    help="Only from then on: an age (10m, 2h, 7d) or an RFC 3339 time.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with everything in it.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The hub's configuration (it names the data folder).",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The hub's data folder, instead of the configured one.",
)
def list_events(
    *,
    follow: bool,
    agent: str | None,
    cluster: str | None,
    since: datetime | None,
    as_json: bool,
    config: Path | None,
    data_dir: Path | None,
) -> None:
    """Print events, the oldest first. Reading the trail is an event in it as well."""
    from audit.display import header_line, json_line, table_line
    from audit.store import AuditReader, AuditUnavailable
    from proxy.configuration import ConfigError
    from proxy.hub.config import load
    from proxy.hub.datadir import DataDir

    org = ""
    if data_dir is None:
        try:
            settings = load(config)
        except ConfigError as error:
            raise ConfigurationFaults("hub", error.faults) from error
        data_dir, org = settings.data_dir, settings.org
    path = DataDir(data_dir).audit_file
    filters = {"agent": agent, "cluster": cluster, "since": since.isoformat() if since else None}
    try:
        reader = AuditReader(path)
        try:
            record_read(path, org, "audit list --follow" if follow else "audit list", filters)
            if not as_json:
                click.echo(header_line())
            for stored in _pages(reader, agent, cluster, since, follow=follow):
                click.echo(json_line(stored) if as_json else table_line(stored))
        finally:
            reader.close()
    except AuditUnavailable as error:
        raise CommandError(
            f"{error}: name the hub's data folder by --data-dir, or its file by --config"
        ) from error
    except KeyboardInterrupt:
        # The usual end of --follow.
        return


def _pages(
    reader: AuditReader, agent: str | None, cluster: str | None, since: datetime | None, *, follow: bool
) -> Iterator[StoredEvent]:
    """Read page by page, so that a trail of millions is never in memory as a whole."""
    seq = 0
    while True:
        page = reader.query(after_seq=seq, agent=agent, cluster=cluster, since=since)
        yield from page
        if page:
            seq = page[-1].seq
        elif not follow:
            return
        else:
            time.sleep(POLL_S)


def record_read(path: Path, org: str, command: str, filters: dict[str, str | None]) -> None:
    """Write down who reads; a trail that cannot take the event is read all the same, with a warning.

    Whoever can run this can read the file by other means, and a full disk is when they need to look.
    """
    from audit.ids import new_eid
    from audit.record import Actor, ActorType, Client, Event, Kind, Phase, utc
    from audit.store import AuditStore, AuditUnavailable

    told = [f"{name}={value}" for name, value in filters.items() if value is not None]
    event = Event(
        eid=new_eid(),
        kind=Kind.AUDIT_READ,
        phase=Phase.COMPLETE,
        ts=utc(time.time()),
        org=org,
        actor=Actor(ActorType.OPERATOR, _user_name()),
        client=Client(mode="local"),
        note=" ".join([command, *told]),
    )
    try:
        store = AuditStore(path)
        try:
            store.append([event])
        finally:
            store.close()
    except AuditUnavailable as error:
        click.echo(f"hawse: this reading is not recorded: {error}", err=True)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"
