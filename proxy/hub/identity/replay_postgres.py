"""The used tokens of all hubs on one database of PostgreSQL: the table `seen`.

One INSERT decides: of two hubs that use a token at once, the second one waits for the commit of the first,
and then inserts nothing. If the answer is lost, the INSERT is sent again. The attempt id of a row then tells
the first use from a replay.

A row is kept until its token has expired by the database's clock, and CLOCKS_S longer. Hubs that accept a
token by clocks that are behind still find it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import attrs

from audit.postgres import arrays
from audit.postgres.link import Call, Conninfo, Link, Lost, Refused, Statement, text_of
from proxy.hub.identity.replay_store import UnwrittenError, Use
from proxy.hub.store.engines.errors import StoreUnavailableError

# A login waits no longer than this. An agent waits 10 s for its answer, and a relay 10 s for its tunnel.
WAIT_S = 5.0
# Less than WAIT_S, so that a use which met a dead connection is written by a new one.
ANSWER_S = 4.0
# A hub whose clock is off by 30 s does not start; later it may drift.
CLOCKS_S = 60
PRUNE_EVERY_S = 60.0
# 10 to 30 ms in the transaction of a batch. If there are more, the next batch goes on.
PRUNED_ROWS_MAX = 1000

# A use that is written again changes nothing. Without a transaction id, its commit would not wait for a
# standby.
_REAL: Call = (Statement(b"real", b"SELECT txid_current()"), ())
INSERT = Statement(
    b"insert",
    b"INSERT INTO seen (token, attempt, kept_until) "
    b"SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[]) ON CONFLICT (token) DO NOTHING",
)
# A separate statement, so that it sees the rows for whose commit the INSERT has waited.
_FIND = Statement(b"find", b"SELECT encode(attempt, 'hex') FROM seen WHERE token = ANY ($1::bytea[])")
# A row that another hub deletes is skipped, so that no hub waits for another one.
_PRUNE = Statement(
    b"prune",
    b"WITH expired AS (SELECT token FROM seen WHERE kept_until <= extract(epoch FROM now())::bigint "
    b"ORDER BY kept_until LIMIT %d FOR UPDATE SKIP LOCKED), "
    b"deleted AS (DELETE FROM seen USING expired WHERE seen.token = expired.token RETURNING 1) "
    b"SELECT count(*) FROM deleted" % PRUNED_ROWS_MAX,
)


@attrs.define(eq=False)
class PostgresUses:
    """The table in the database of `conninfo` (a UseTable)."""

    _conninfo: Conninfo
    wait_s: float = attrs.field(init=False, default=WAIT_S)
    fails_open: bool = attrs.field(init=False, default=False)
    _link: Link | None = attrs.field(init=False, default=None)
    _unsure: bool = attrs.field(init=False, default=False)
    """A batch was not answered, so the next one may be written already."""
    _prune_at_s: float = attrs.field(init=False, default=-math.inf)

    def write(self, uses: Sequence[Use]) -> None:
        """Write a batch in one transaction and one round trip; raises UnwrittenError."""
        calls = [_REAL] if self._unsure else []
        calls += insert(uses)
        prunes = time.monotonic() >= self._prune_at_s
        if prunes:
            calls.append((_PRUNE, ()))
        try:
            answers = self._linked().run(calls, time.monotonic() + ANSWER_S)
        except (Lost, Refused, StoreUnavailableError) as error:
            self._unsure = True
            raise UnwrittenError(
                "used tokens cannot be written to PostgreSQL, so logins and relays are refused after "
                f"{WAIT_S:.0f} s: {error}"
            ) from error
        self._unsure = False
        if prunes:
            pruned = int(text_of(answers.pop()[0][0]))
            if pruned < PRUNED_ROWS_MAX:
                self._prune_at_s = time.monotonic() + PRUNE_EVERY_S
        found = {text_of(attempt) for (attempt,) in answers[-1]}
        for use in uses:
            use.fresh = use.attempt.hex() in found

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _linked(self) -> Link:
        """Return the connection, opened if necessary; raises Lost, Refused and StoreUnavailableError."""
        if self._link is None or self._link.closed:
            self._link = None
            self._link = Link(self._conninfo)
        return self._link


def insert(uses: Sequence[Use]) -> list[Call]:
    """The calls that insert uses, and find the attempts that their tokens have then."""
    # Sorted, or two hubs that insert the same tokens could wait for each other.
    ordered = sorted(uses, key=lambda use: use.token)
    tokens = arrays.blobs([use.token for use in ordered])
    attempts = arrays.blobs([use.attempt for use in ordered])
    kept_until = arrays.int8s([math.ceil(use.kept_until) + CLOCKS_S for use in ordered])
    return [(INSERT, (tokens, attempts, kept_until)), (_FIND, (tokens,))]
