"""The replay cache that all hubs on one data folder share: a small SQLite file.

A hub that starts, or takes over from another one, reads from it which tokens were used. So a restart makes no
token valid again. The file is separate from `hub.db`, since each change of that makes a hub reload its store.
It is in no backup: its rows are worthless after a minute or so.

Each use waits until it is on disk. Uses that arrive while a batch is written form the next batch, so many
share one flush. If the file cannot be written, tunnels and logins still work: each hub then relies on its own
memory (proxy.hub.identity.replay), and the log says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from audit.sqlite import is_damaged
from tunnel.net.loglimit import LogLimit

# Another hub's write takes milliseconds. A longer wait means that the disk is in trouble.
BUSY_TIMEOUT_S = 2.0

_RETRY_S = 0.005

_PREPARE = """
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS seen (token BLOB PRIMARY KEY, kept_until REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS seen_by_kept_until ON seen (kept_until);
"""

_log = logging.getLogger("hawse.hub.seen")


@attrs.define(eq=False)
class _Use:
    """The use of a token, and whether it is the first one, once that is known."""

    token: bytes
    kept_until: float
    fresh: bool | None = None


@attrs.define(eq=False)
class ReplayStore:
    """The file at `path`, created when the first token is used.

    Its rows are the ones that the hubs on the folder hold in memory too. Their number is bounded there.
    """

    path: Path
    unwritten: int = attrs.field(init=False, default=0)
    """Uses that could not be written. A hub that starts now does not know of them."""
    _connection: sqlite3.Connection | None = None
    _waiting: list[_Use] = attrs.Factory(list)
    _lock: trio.Lock = attrs.Factory(trio.Lock)
    # A limiter of its own: when DNS is down, name lookups can occupy every thread of the default one.
    _thread: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(1))
    _failed: LogLimit = attrs.Factory(lambda: LogLimit(_log))

    async def enter(self, kind: str, owner: str, jti: str, kept_until: float, now: float) -> bool:
        """Record the use of a token until `kept_until`, and return whether it is the first use.

        When cancelled, the use may have been recorded all the same.
        """
        # Hashed, since the sender chooses the text and it may be long. Names and owners hold no zero byte.
        digest = hashlib.sha256("\0".join((kind, owner, jti)).encode("utf-8", "surrogatepass")).digest()
        use = _Use(digest, kept_until)
        self._waiting.append(use)
        async with self._lock:
            if use.fresh is None:
                await self._write_waiting(now)
        return use.fresh is True

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _write_waiting(self, now: float) -> None:
        """Write all waiting uses. When cancelled, the next holder of the lock writes them."""
        batch, self._waiting = self._waiting, []
        try:
            failure = await trio.to_thread.run_sync(self._write, batch, now, limiter=self._thread)
        except BaseException:
            self._waiting[:0] = batch
            raise
        if failure:
            self.unwritten += len(batch)
            forgets = "a restart forgets which tokens were used"
            self._failed.warning(
                f"{self.path} cannot be written, and {forgets}: {failure}", trio.current_time()
            )

    def _write(self, batch: Sequence[_Use], now: float) -> str:
        """Write a batch in one transaction; return why it failed, or "". Runs in a thread."""
        found: set[_Use] = set()
        failure = ""
        try:
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM seen WHERE kept_until <= ?", (now,))
            for use in batch:
                entered = connection.execute(
                    "INSERT OR IGNORE INTO seen (token, kept_until) VALUES (?, ?)",
                    (use.token, use.kept_until),
                )
                if not entered.rowcount:
                    found.add(use)
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            # The next use opens the file again.
            self.close()
            failure = f"{error}: remove it" if is_damaged(error) else str(error)
        # Keep the replays that were found before a failure.
        for use in batch:
            use.fresh = use not in found
        return failure

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            # Created with mode 0600 from its first byte. An existing file is not opened here: closing it
            # would drop the locks that SQLite holds on it in this process.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            _write_ahead(self._connection)
            self._connection.executescript(_PREPARE)
        return self._connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a file to WAL, once for all processes that open it.

    SQLite ignores its busy timeout here: of two processes that switch at once, one could wait for ever.
    """
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            # The switch ends only when its row is fetched. Without the fetch, its failure would go unnoticed.
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(_RETRY_S)
        else:
            return
