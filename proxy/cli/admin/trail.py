"""Writes into the audit trail what an operator does to a hub without its API."""

from __future__ import annotations

import os
import pwd
import time
from pathlib import Path

from proxy.cli.admin.output import say


def record_local(folder: Path, verb: str, note: str) -> None:
    """Record an action on a data folder; one that cannot be recorded is done all the same, with a warning.

    Whoever can run this can copy the folder by other means, and a broken disk is when they need to.
    """
    from audit.errors import AuditUnavailable
    from audit.ids import new_eid
    from audit.record import Actor, ActorType, Client, Event, Kind, Phase, Request, utc
    from audit.store import AuditStore
    from proxy.hub.datadir import DataDir

    event = Event(
        eid=new_eid(),
        kind=Kind.ADMIN,
        phase=Phase.COMPLETE,
        ts=utc(time.time()),
        actor=Actor(ActorType.OPERATOR, _user_name()),
        client=Client(mode="local"),
        req=Request(verb=verb, resource="hub"),
        note=note,
    )
    try:
        store = AuditStore(DataDir(folder).audit_file)
        try:
            store.append([event])
        finally:
            store.close()
    except AuditUnavailable as error:
        say(f"hawse: this {verb} is not recorded: {error}")


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid-{os.getuid()}"
