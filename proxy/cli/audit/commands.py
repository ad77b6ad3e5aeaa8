"""`hawse audit`: read a hub's trail, from its file or over the admin API, and prune it, from its file."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.audit.list import follow, list_events
from proxy.cli.audit.local_events import local_event
from proxy.cli.audit.options import data_folder_options, find_trail, to_age, unavailable
from proxy.cli.audit.show import show
from proxy.cli.errors import CommandError

if TYPE_CHECKING:
    from audit.record import Event


@click.group()
def audit() -> None:
    """Read the audit trail, and prune old events.

    On the hub's machine it is read from its file, also while the hub is stopped. From another machine, name
    the hub by --hub or set HAWSE_ADMIN_URL, as for `hawse admin`.
    """


audit.add_command(list_events)
audit.add_command(show)
audit.add_command(follow)


@audit.command()
@click.option(
    "--keep",
    "before",
    required=True,
    metavar="AGE",
    callback=to_age,
    help="Remove events that are older than this: 90d, 36h.",
)
@click.option(
    "--archive",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the removed events to a new file first, one JSON object a line.",
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation. Without a terminal it never asks.")
@data_folder_options
def prune(
    *, before: datetime, archive: Path | None, yes: bool, config: Path | None, data_dir: Path | None
) -> None:
    """Remove the oldest events. The hub may keep running.

    The trail keeps an event that names the removed range and the SHA-256 of its lines, in the format of
    `audit list --json` and --archive.
    """
    from audit.errors import AuditUnavailable
    from audit.record import Kind
    from audit.retention import Removal
    from proxy.cli.output import confirm
    from proxy.cli.progress import progress
    from proxy.hub.home.trails import open_prunable, shown

    found = find_trail(config, data_dir)
    # The trail records the path. A relative path would mean nothing there.
    archive = archive and archive.absolute()

    def removal_event(removal: Removal) -> Event:
        suffix = f" archive={archive}" if archive is not None else ""
        return local_event(Kind.AUDIT_PRUNED, f"{removal}{suffix}", org=found.org)

    try:
        store = open_prunable(found.place)
        try:
            confirm(
                f"Remove all events before {before:%Y-%m-%d %H:%M} UTC from {shown(found.place)}?", yes=yes
            )
            with progress() as show_progress:
                removal = store.prune(before, removal_event, archive, show_progress)
        finally:
            store.close()
    except AuditUnavailable as error:
        raise unavailable(error) from error
    except FileExistsError as error:
        raise CommandError(f"{archive} exists already, so nothing is removed: choose another file") from error
    except OSError as error:
        raise CommandError(f"cannot write {archive}, so nothing is removed: {error.strerror}") from error
    click.echo("no event is that old" if removal is None else f"removed {removal}")
