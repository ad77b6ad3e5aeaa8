"""`hawse admin audit`: works on the hub's data folder, since a hub with a foreign trail may not start."""

from __future__ import annotations

import time

import click

from proxy.cli.admin.api.client import Reach
from proxy.cli.audit.local_events import local_event
from proxy.cli.errors import CommandError
from proxy.cli.output import confirm, say, yes_option


@click.group()
def audit() -> None:
    """Repair the audit trail's file. To read it, use `hawse audit`."""


@audit.command()
@yes_option
@click.pass_obj
def accept(reach: Reach, /, yes: bool) -> None:
    """Accept a trail that this hub has not written.

    For when the trail was lost, and the data folder has another trail or an older copy. If there is none, a
    new trail begins. The event `audit.gap` records the event from which on the former trail is missing. A
    running hub resumes within two seconds. A hub that refused to start for this reason can start now.
    """
    from audit.errors import AuditUnavailable
    from audit.record import Event, Kind
    from audit.store import TrailMark
    from proxy.hub.home.databases import noted_address
    from proxy.hub.home.datadir import DataDir
    from proxy.hub.home.files.private_files import DataDirError, is_there
    from proxy.hub.home.hub_instances import HubInstances
    from proxy.hub.home.trails import open_trail, place_of, shown
    from proxy.hub.store.engines.errors import StoreUnavailableError
    from proxy.hub.store.store import Store

    data = DataDir(reach.folder())
    try:
        address = noted_address(data)
        if address is None and not is_there(data.store_file):
            raise CommandError(
                f"{data.path} is not a hub's data folder: name it with --data-dir or HAWSE_HUB_DATA_DIR"
            )
        running = HubInstances(data.instances_dir).running()
        store = Store(address or data.store_file, org="main", clock=time.time, shared=bool(running))
        try:
            known = store.snapshot().trail
            if known is None:
                raise CommandError("the hub has not written a trail yet, and accepts any: start the hub")
            place = place_of(data)
            trail = open_trail(place)
            try:
                found = trail.mark
                which = "the hub's own trail" if found.id == known.id else "another trail"
                confirm(
                    f"{shown(place)} holds {which}, up to event {found.highest}; the hub has written up to "
                    f"event {known.highest} at least. Accept it?",
                    yes=yes,
                )

                def gap_event(accepted: TrailMark) -> Event:
                    note = (
                        f"accepted as trail {accepted.id}: {which} ({found.id}), up to event "
                        f"{found.highest}; the hub had written trail {known.id}, up to event "
                        f"{known.highest} at least"
                    )
                    return local_event(Kind.AUDIT_GAP, note)

                # The trail first: after an interruption the hub still refuses it, and `accept` can run again.
                store.accept_trail(trail.accept(gap_event))
            finally:
                trail.close()
        finally:
            store.close()
    except (AuditUnavailable, DataDirError, StoreUnavailableError) as error:
        raise CommandError(str(error)) from error
    say(f"accepted {shown(place)}; the gap is recorded (hawse audit list --kind audit.gap)")
