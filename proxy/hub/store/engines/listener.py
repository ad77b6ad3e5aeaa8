"""Hears at once that another process has changed a store in PostgreSQL.

The connection does nothing but LISTEN, so nothing else on it delays a notification. A notification is a hint:
the poll reads what has changed. While the connection is lost, or leads through a pooler that passes no
notifications, the poll finds each change within half a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, NoReturn

import trio

from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress

if TYPE_CHECKING:
    import psycopg

# The wait before another connection attempt, doubled after each that fails.
RECONNECT_S = 0.5
RECONNECT_MAX_S = 10.0

_log = logging.getLogger(__name__)


async def listen(address: PostgresAddress, channel: str, heard: Callable[[], None]) -> NoReturn:
    """Call `heard` for notifications, and whenever a connection is made, until cancelled.

    A connection attempt is made in a thread. Cancelled during one, it ends first, within its bounds.
    """
    thread = trio.CapacityLimiter(1)
    wait_s = RECONNECT_S
    while True:
        try:
            connection = await trio.to_thread.run_sync(_connect, address, channel, limiter=thread)
        except StoreUnavailableError as error:
            _log.info("cannot listen for changes of the store: %s; polls find them", error)
        else:
            wait_s = RECONNECT_S
            with closing(connection):
                # What was announced while there was no connection is lost.
                heard()
                await _hear(connection.pgconn, heard)
            _log.info("lost the connection that listens for changes of the store; polls find them")
        await trio.sleep(wait_s)
        wait_s = min(2 * wait_s, RECONNECT_MAX_S)


def _connect(address: PostgresAddress, channel: str) -> psycopg.Connection[object]:
    # The driver is an extra, which a hub on SQLite need not have.
    import psycopg

    from proxy.hub.store.engines.postgres import ReadingConnection, conninfo_of, said

    try:
        connection = ReadingConnection.connect(conninfo_of(address), autocommit=True)
        try:
            connection.execute(f"LISTEN {channel}")
        except psycopg.Error:
            connection.close()
            raise
    except psycopg.Error as error:
        raise StoreUnavailableError(said(error)) from error
    return connection


async def _hear(pgconn: psycopg.pq.abc.PGconn, heard: Callable[[], None]) -> None:
    """Return when the connection is lost."""
    import psycopg

    while pgconn.status == psycopg.pq.ConnStatus.OK:
        await trio.lowlevel.wait_readable(pgconn.socket)
        try:
            pgconn.consume_input()
        except psycopg.OperationalError:
            return
        notified = False
        while pgconn.notifies() is not None:
            notified = True
        if notified:
            heard()
