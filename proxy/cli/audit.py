"""`hawse audit`: read the trail on the hub's machine, straight from its file, whether the hub runs or not."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.audit_list import list_events
from proxy.cli.audit_options import data_folder_options, find_trail, to_age, unavailable
from proxy.cli.audit_show import show
from proxy.cli.errors import CommandError
from proxy.cli.trail import local_event

if TYPE_CHECKING:
    from audit.record import Event


@click.group()
def audit() -> None:
    """Read the audit trail on the hub's machine, and shorten it."""


audit.add_command(list_events)
audit.add_command(show)


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

    path, org, _ = find_trail(config, data_dir)
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
        raise unavailable(error) from error
    except FileExistsError as error:
        raise CommandError(f"{archive} exists already, so nothing is removed: choose another name") from error
    except OSError as error:
        raise CommandError(f"cannot write {archive}, so nothing is removed: {error.strerror}") from error
    click.echo("no event is that old" if removal is None else f"removed {removal}")
