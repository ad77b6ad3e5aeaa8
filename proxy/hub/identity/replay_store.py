"""What the hubs on one data folder remember together of tokens that are good once: a small SQLite file.

A hub that starts, or takes another one's place, finds in it what was used before, so that nothing is good
once more because of a restart. The file is no part of `hub.db`, every change of which makes a hub read its
store anew, and of no backup: what stands in it is worth nothing after a minute or so.

Each use waits until it is on the disk. Whoever comes while one batch is being written is in the next, so that
many share one flush. A file that cannot be written costs no tunnel and no login: each hub then goes by its
own memory alone (proxy.hub.identity.replay), and the log says so.
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

# Another hub's write takes milliseconds; the disk is in trouble when it takes longer than this.
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
    """A token that is being used, until it is known whether it was used before."""

    token: bytes
    kept_until: float
    fresh: bool | None = None


@attrs.define(eq=False)
class SeenStore:
    """The file at `path`, made when the first token is used.

    Its rows are those that the hubs on the folder hold in memory as well, whose number is bounded there.
    """

    path: Path
    unwritten: int = attrs.field(init=False, default=0)
    """Uses that the file could not be told of, which a hub that starts now does not know."""
    _connection: sqlite3.Connection | None = None
    _waiting: list[_Use] = attrs.Factory(list)
    _turn: trio.Lock = attrs.Factory(trio.Lock)
    # Its own: look-ups of names can hold every thread of the default one for as long as DNS is down.
    _thread: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(1))
    _failed: LogLimit = attrs.Factory(lambda: LogLimit(_log))

    async def enter(self, what: str, owner: str, jti: str, kept_until: float, now: float) -> bool:
        """Note the use of a token until then, and return whether this is the first one.

        When cancelled, it may have been noted all the same.
        """
        # Its text is the sender's and may be long; names and owners hold no zero byte.
        digest = hashlib.sha256("\0".join((what, owner, jti)).encode("utf-8", "surrogatepass")).digest()
        use = _Use(digest, kept_until)
        self._waiting.append(use)
        async with self._turn:
            if use.fresh is None:
                await self._write_waiting(now)
        return use.fresh is True

    def close(self) -> None:
        """Close the file; a store that is used again opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    async def _write_waiting(self, now: float) -> None:
        """Settle all that wait; when cancelled, none of them was, and whoever has the next turn does it."""
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
        """Enter a batch in one transaction; returns why it could not, or nothing. Runs in a thread."""
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
            # The next use opens it afresh.
            self.close()
            failure = f"{error}: remove it" if is_damaged(error) else str(error)
        # What was found before a failure stays found.
        for use in batch:
            use.fresh = use not in found
        return failure

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            # By the owner alone from its first byte. One that is there is not opened: closing it would take
            # away the locks that SQLite has on it in this process.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(
                self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            _write_ahead(self._connection)
            self._connection.executescript(_PREPARE)
        return self._connection


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch a file to WAL, once for all who open it.

    SQLite waits for no lock here, whatever its timeout: of two that switch at once one could wait for ever.
    """
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            # Until the answer is taken the switch is under way, and what it fails of is told to nobody.
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(_RETRY_S)
        else:
            return
