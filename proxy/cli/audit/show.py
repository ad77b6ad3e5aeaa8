"""`hawse audit show`: everything that the trail holds about one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy.cli.audit.local_events import record_read
from proxy.cli.audit.options import find_trail, note_source, reach_of, trail_options, unavailable
from proxy.cli.errors import CommandError

if TYPE_CHECKING:
    from audit.calls import FoundCall


@click.command()
@click.argument("event", metavar="EID")
@click.option("--json", "as_json", is_flag=True, help="Print the rows, one JSON object a line.")
@trail_options
def show(*, event: str, as_json: bool, config: Path | None, data_dir: Path | None, hub: str | None) -> None:
    """Show one call: agent, request, cluster, deciding rule and outcome.

    EID is the event's id, which is also the Audit-ID in the cluster's own audit log. Its first eight
    characters are enough. EID can also be the number of a row, the first column of `hawse audit list`.

    \b
    hawse audit show 0199a1b2-4c5d-7e6f-8a9b-0c1d2e3f4a5b
    hawse audit show 53211
    """
    from audit.display import json_line
    from audit.page import page_lines

    reach = reach_of(config, data_dir, hub)
    if reach.remote:
        from proxy.cli.audit.remote import find_remote

        found = find_remote(reach.client(), event)
    else:
        found = _find_local(config, data_dir, event)
    for line in [json_line(row) for row in found.rows] if as_json else page_lines(found):
        click.echo(line)


def _find_local(config: Path | None, data_dir: Path | None, event: str) -> FoundCall:
    """Find a call in the trail on this machine; raises CommandError, click.UsageError."""
    from audit.calls import NUMBER
    from audit.errors import AuditUnavailable, NoSuchCall
    from proxy.hub.home.trails import open_calls

    found_trail = find_trail(config, data_dir)
    try:
        reader = open_calls(found_trail.place)
        try:
            note_source(found_trail, by_option=config is not None or data_dir is not None)
            # Check first, as in `list`: an unreadable trail is one error.
            reader.last()
            found = reader.by_number(event) if NUMBER.fullmatch(event) else reader.by_id(event)
            record_read(found_trail.place, found_trail.org, "audit show", {"eid": event})
        finally:
            reader.close()
    except ValueError as error:
        raise click.UsageError(
            f"{error}: expected an id such as 0199a1b2-4c5d-7e6f-8a9b-0c1d2e3f4a5b, at least its first eight "
            "characters, or a number from `hawse audit list`"
        ) from error
    except NoSuchCall as error:
        raise CommandError(str(error)) from error
    except AuditUnavailable as error:
        raise unavailable(error) from error
    return found
