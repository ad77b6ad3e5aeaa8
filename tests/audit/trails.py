"""Trails of both engines for tests, and events as earlier versions wrote them."""

from __future__ import annotations

import json
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import attrs
import psycopg

from audit.calls import CallReader
from audit.mask import Masks
from audit.postgres.calls import PostgresCallReader
from audit.postgres.reader import PostgresReader
from audit.postgres.retention import PrunablePostgresStore
from audit.postgres.search import PostgresSearch
from audit.postgres.store import PostgresStore
from audit.reader import AuditReader, TrailReader
from audit.record import Event, encode
from audit.retention import PrunableStore
from audit.schema import microseconds
from audit.search.file import FileSearch
from audit.store import AuditStore

Store = AuditStore | PostgresStore
Prunable = PrunableStore | PrunablePostgresStore


class Trail(ABC):
    """A trail that each test has for itself, in one of the engines."""

    @abstractmethod
    def open(self, masks: Masks | None = None) -> Store: ...

    @abstractmethod
    def open_prunable(self, clock: Callable[[], float] = time.time) -> Prunable: ...

    @abstractmethod
    def reader(self) -> TrailReader: ...

    @abstractmethod
    def search(self) -> FileSearch | PostgresSearch: ...

    @abstractmethod
    def calls(self) -> CallReader | PostgresCallReader: ...

    def read(self) -> list[dict[str, object]]:
        """Each event as a dict, with its number."""
        with closing(self.reader()) as reader:
            return [json.loads(stored.line) for stored in reader.query()]

    def bodies(self) -> list[bytes]:
        """Each event's JSON, as written."""
        with closing(self.reader()) as reader:
            return [stored.body for stored in reader.query()]


@attrs.frozen
class FileTrail(Trail):
    path: Path

    def open(self, masks: Masks | None = None) -> AuditStore:
        return AuditStore(self.path, masks)

    def open_prunable(self, clock: Callable[[], float] = time.time) -> PrunableStore:
        return PrunableStore(self.path)

    def reader(self) -> AuditReader:
        return AuditReader(self.path)

    def search(self) -> FileSearch:
        return FileSearch(self.path)

    def calls(self) -> CallReader:
        return CallReader(self.path)


@attrs.frozen
class PostgresTrail(Trail):
    url: str
    connection: psycopg.Connection[tuple[object, ...]]
    """Another connection, of the superuser."""

    def open(self, masks: Masks | None = None) -> PostgresStore:
        # Tests of a database that is away set their own wait.
        return PostgresStore(self.conninfo, masks, wait_s=0)

    def open_prunable(self, clock: Callable[[], float] = time.time) -> PrunablePostgresStore:
        return PrunablePostgresStore(self.conninfo, wait_s=0, clock=clock)

    def reader(self) -> PostgresReader:
        return PostgresReader(self.conninfo)

    def search(self) -> PostgresSearch:
        return PostgresSearch(self.conninfo)

    def calls(self) -> PostgresCallReader:
        return PostgresCallReader(self.conninfo)

    def conninfo(self) -> str:
        return self.url

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """The rows of a statement."""
        return self.connection.execute(statement.encode()).fetchall()

    def clear(self) -> None:
        """Make the trail empty, and another one."""
        for table in ("events", "parts", "blocks", "open", "late_ends", "epochs WHERE epoch > 0"):
            self.connection.execute(f"DELETE FROM trail_{table}".encode())
        self.connection.execute("UPDATE trail SET id = gen_random_uuid()")


def bodies(path: Path) -> list[bytes]:
    """Each event's JSON, as written to a file."""
    return FileTrail(path).bodies()


def read(path: Path) -> list[dict[str, object]]:
    """Each event of a file as a dict, with its number."""
    return FileTrail(path).read()


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


def old_file(path: Path, events: list[Event]) -> None:
    """Make a trail of the first version, with whole events."""
    AuditStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE common_parts")
        connection.execute("ALTER TABLE events DROP COLUMN common")
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    for event in events:
        append_whole(path, event)
