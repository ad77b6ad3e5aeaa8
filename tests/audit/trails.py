"""Reads a trail's contents for comparison, and writes events as earlier versions did."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

from audit.reader import AuditReader
from audit.record import Event, encode
from audit.schema import microseconds


def bodies(path: Path) -> list[bytes]:
    """Each event's JSON, as written."""
    with closing(AuditReader(path)) as reader:
        return [stored.body for stored in reader.query()]


def read(path: Path) -> list[dict[str, object]]:
    """Each event as a dict, with its number."""
    with closing(AuditReader(path)) as reader:
        return [json.loads(stored.line) for stored in reader.query()]


def append_whole(path: Path, event: Event) -> None:
    """Write an event as earlier versions did: whole, and without a block index."""
    values = (
        *(event.eid, event.phase, event.kind, microseconds(event.ts), event.agent, event.cluster_name),
        encode(event),
    )
    with closing(sqlite3.connect(path)) as connection:
        columns = "eid, phase, kind, ts_us, agent, cluster, body"
        connection.execute(f"INSERT INTO events ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        connection.commit()
