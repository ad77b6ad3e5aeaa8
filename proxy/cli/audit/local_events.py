"""Audit events that commands on the hub's machine write themselves, without the hub's API.

Users who can run these commands can read the data folder anyway, and often need them when a disk is broken or
full. So if an event can't be written, the command goes on with a warning.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from audit.record import Event, Kind, Request
    from proxy.hub.home.trails import TrailPlace


def record_local(folder: Path, verb: str, note: str, *, resource: str = "hub") -> None:
    """Record an action on a data folder, or on the database that it names."""
    from audit.record import Kind, Request
    from proxy.hub.home.datadir import DataDir
    from proxy.hub.home.trails import place_of

    event = local_event(Kind.ADMIN, note, req=Request(verb=verb, resource=resource))
    _append(place_of(DataDir(folder)), event, verb)


def record_read(place: TrailPlace, org: str, command: str, filters: dict[str, str | None]) -> None:
    """Record a read of the trail: the user, the command and its filters."""
    from audit.record import Kind

    parts = [f"{name}={value}" for name, value in filters.items() if value is not None]
    _append(place, local_event(Kind.AUDIT_READ, " ".join([command, *parts]), org=org), "reading")


def local_event(kind: Kind, note: str, *, org: str = "", req: Request | None = None) -> Event:
    """Return an event for an action of this machine's user."""
    from audit.events import new_event
    from audit.record import Actor, ActorType, Client
    from proxy.hub.store.local_user import local_actor, local_user

    return new_event(
        kind,
        Actor(ActorType.OPERATOR, local_actor(local_user(os.environ))),
        org=org,
        client=Client(mode="local"),
        req=req,
        note=note,
    )


def _append(place: TrailPlace, event: Event, what: str) -> None:
    from audit.errors import AuditUnavailable
    from proxy.hub.home.trails import open_trail

    try:
        store = open_trail(place)
        try:
            store.append([event])
        finally:
            store.close()
    except AuditUnavailable as error:
        click.echo(f"hawse: this {what} is not recorded: {error}", err=True)
