"""Stores of used one-time tokens for tests, on both engines."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import attrs
import trio
import trio.lowlevel

from proxy.hub.identity.replay_sqlite import SqliteUses
from proxy.hub.identity.replay_store import ReplayStore, Use, UseTable, open_replay_store
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.engines.postgres_address import PostgresAddress


def table_at(location: Location) -> UseTable:
    """The table in a file of SQLite, or in a database of PostgreSQL."""
    if isinstance(location, Path):
        return SqliteUses(location)
    from proxy.hub.identity.replay_postgres import PostgresUses

    url = location.url
    return PostgresUses(lambda: url)


def open_replays(location: Location) -> AbstractAsyncContextManager[ReplayStore]:
    """Open a store for the block."""
    return open_replay_store(table_at(location))


def unreachable(folder: Path) -> PostgresAddress:
    """A database in PostgreSQL whose server is away: the folder has no socket of it."""
    return PostgresAddress(f"postgresql://hawse@/hawse?host={folder}")


@attrs.define(eq=False)
class HeldTable:
    """A table whose first batch waits until the test goes on."""

    table: UseTable
    reached: trio.Event = attrs.Factory(trio.Event)
    go: threading.Event = attrs.Factory(threading.Event)
    closed: threading.Event = attrs.Factory(threading.Event)
    batches: list[int] = attrs.Factory(list)
    _token: trio.lowlevel.TrioToken = attrs.Factory(trio.lowlevel.current_trio_token)

    @property
    def wait_s(self) -> float:
        return self.table.wait_s

    @property
    def fails_open(self) -> bool:
        return self.table.fails_open

    def write(self, uses: Sequence[Use]) -> None:
        self.batches.append(len(uses))
        if len(self.batches) == 1:
            self._token.run_sync_soon(self.reached.set)
            assert self.go.wait(30)
        self.table.write(uses)

    def close(self) -> None:
        self.table.close()
        self.closed.set()
