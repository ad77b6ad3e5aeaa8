"""The used tokens of the hubs on one data folder: a small SQLite file.

It is separate from `hub.db`, since each change of that makes a hub reload its store. It is in no backup.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import attrs

from audit.sqlite import is_damaged
from proxy.hub.identity.replay_store import UnwrittenError, Use

# Another hub's write takes milliseconds. A longer wait means that the disk is in trouble.
BUSY_TIMEOUT_S = 2.0

_RETRY_S = 0.005

_PREPARE = """
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS seen (token BLOB PRIMARY KEY, kept_until REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS seen_by_kept_until ON seen (kept_until);
"""


@attrs.define(eq=False)
class SqliteUses:
    """The file at `path`, created when the first token is used (a UseTable).

    Its rows are the ones that the hubs on the folder hold in memory too. Their number is bounded there.
    """

    path: Path
    wait_s: float = attrs.field(init=False, default=math.inf)
    """A disk that hangs ends the request at its own limit."""
    fails_open: bool = attrs.field(init=False, default=True)
    _connection: sqlite3.Connection | None = attrs.field(init=False, default=None)

    def write(self, uses: Sequence[Use]) -> None:
        """Write a batch in one transaction; raises UnwrittenError."""
        replays: list[Use] = []
        try:
            connection = self._connected()
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM seen WHERE kept_until <= ?", (uses[-1].now,))
            for use in uses:
                entered = connection.execute(
                    "INSERT OR IGNORE INTO seen (token, kept_until) VALUES (?, ?)",
                    (use.token, use.kept_until),
                )
                if not entered.rowcount:
                    replays.append(use)
            connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            # The next use opens the file again.
            self.close()
            failure = f"{error}: remove it" if is_damaged(error) else str(error)
            forgets = "a restart forgets which tokens were used"
            raise UnwrittenError(f"{self.path} cannot be written, and {forgets}: {failure}") from error
        else:
            for use in uses:
                use.fresh = True
        finally:
            # Also those that were found before a failure.
            for use in replays:
                use.fresh = False

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            # Created with mode 0600 from its first byte. An existing file is not opened here: closing it
            # would drop the locks that SQLite holds on it in this process.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
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
