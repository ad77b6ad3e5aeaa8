"""Makes events: the fields that every event has are filled in here."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from audit.ids import new_eid, uuid7
from audit.record import (
    Actor,
    Approval,
    Client,
    Cluster,
    Decision,
    Event,
    Impersonated,
    Kind,
    Phase,
    Relay,
    Request,
    Response,
    Stream,
    utc,
)


def new_event(
    kind: Kind,
    actor: Actor,
    *,
    org: str,
    at: float | None = None,
    eid: str = "",
    phase: Phase = Phase.COMPLETE,
    dur_ms: float | None = None,
    client: Client | None = None,
    cluster: Cluster | None = None,
    relay: Relay | None = None,
    req: Request | None = None,
    impersonated: Impersonated | None = None,
    decision: Decision | None = None,
    resp: Response | None = None,
    stream: Stream | None = None,
    approval: Approval | None = None,
    serves: str = "",
    count: int = 1,
    note: str = "",
) -> Event:
    """Return an event that happens now, or `at` that time in epoch seconds.

    Without an `eid` it gets a new one, of the same time.
    """
    if not eid:
        eid = new_eid() if at is None else uuid7(int(at * 1000), os.urandom(10))
    return Event(
        eid=eid,
        kind=kind,
        phase=phase,
        ts=datetime.now(UTC) if at is None else utc(at),
        org=org,
        actor=actor,
        dur_ms=dur_ms,
        client=client,
        cluster=cluster,
        relay=relay,
        req=req,
        impersonated=impersonated,
        decision=decision,
        resp=resp,
        stream=stream,
        approval=approval,
        serves=serves,
        count=count,
        note=note,
    )
