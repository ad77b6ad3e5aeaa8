"""`hawse admin audit`: on the hub's machine, straight at its data folder, since a hub may not start."""

from __future__ import annotations

import time

import click

from proxy.cli.admin.client import Reach
from proxy.cli.admin.output import confirm, say, yes_option
from proxy.cli.errors import CommandError
from proxy.cli.trail import local_event


@click.group()
def audit() -> None:
    """The audit trail as a file; `hawse audit` reads it."""


@audit.command()
@yes_option
@click.pass_obj
def accept(reach: Reach, /, yes: bool) -> None:
    """Accept another trail than the hub has written.

    Use it when the trail was lost, and the data folder has another trail or an older copy.
    Where none is, a new one begins.
    The event `audit.gap` in it says from which event on the former one is missing. A hub that runs goes on
    within a second or two, one that did not start for this reason starts.
    """
    from audit.errors import AuditUnavailable
    from audit.record import Event, Kind
    from audit.store import AuditStore, TrailMark
    from proxy.hub.home.datadir import DataDir, DataDirError, is_there
    from proxy.hub.home.hub_instances import HubInstances
    from proxy.hub.store.errors import StoreUnavailableError
    from proxy.hub.store.store import Store

    data = DataDir(reach.folder())
    try:
        if not is_there(data.store_file):
            raise CommandError(
                f"{data.path} is no hub's data folder: name it by --data-dir or HAWSE_HUB_DATA_DIR"
            )
        running = HubInstances(data.instances_dir).running()
        store = Store(data.store_file, org="main", clock=time.time, shared=bool(running))
        try:
            known = store.snapshot().trail
            if known is None:
                raise CommandError("the hub has not written a trail yet, so it takes any: start it")
            trail = AuditStore(data.audit_file)
            try:
                found = trail.mark
                what = "the trail that the hub has written" if found.id == known.id else "another trail"
                confirm(
                    f"{data.audit_file} is {what}, up to event {found.highest}; the hub has written up to "
                    f"event {known.highest} at least. Accept it?",
                    yes=yes,
                )

                def tell(accepted: TrailMark) -> Event:
                    note = (
                        f"accepted as trail {accepted.id}: {what} ({found.id}), up to event {found.highest}; "
                        f"the hub had written trail {known.id}, up to event {known.highest} at least"
                    )
                    return local_event(Kind.AUDIT_GAP, note)

                # The trail first: after an interruption the hub still refuses it, and accept can run again.
                store.accept_trail(trail.accept(tell))
            finally:
                trail.close()
        finally:
            store.close()
    except (AuditUnavailable, DataDirError, StoreUnavailableError) as error:
        raise CommandError(str(error)) from error
    say(f"accepted {data.audit_file}; the gap is recorded in it (hawse audit list --kind audit.gap)")
