"""The writer's connection to PostgreSQL: statements in a pipeline, and a deadline for each answer.

It uses libpq through `psycopg.pq`. A round trip has one wait, `poll` on the socket, and that ends at the
deadline. The kernel of a stopped server (SIGSTOP, a frozen machine) still acknowledges, so neither keepalives
nor `tcp_user_timeout` would end the wait. With the wait in this thread, no other thread has to shut the
socket down.

After any error the connection is closed. The server then rolls its transaction back, unless it had committed.
"""

from __future__ import annotations

import math
import select
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import attrs
import psycopg
from psycopg import pq

# A connection attempt to one host; libpq knows no shorter limit.
CONNECT_S = 2
# The server gives up a lock before this side gives up the statement, so that the error names the lock.
_SESSION = (
    "SELECT set_config('lock_timeout', '4s', false), "
    "set_config('idle_in_transaction_session_timeout', '10s', false), "
    # Without it a commit that returned might not be on the disk.
    "set_config('synchronous_commit', "
    "CASE current_setting('synchronous_commit') WHEN 'off' THEN 'on' "
    "ELSE current_setting('synchronous_commit') END, false)"
)

# SQLSTATE classes of values that PostgreSQL does not store: data exceptions and exceeded limits.
_CONTENT = frozenset({"22", "54"})


class Lost(Exception):
    """The server has not answered in full, so a commit may have happened; or it cannot be reached."""


class Refused(Exception):
    """The server has refused a statement, and nothing of the transaction has happened."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(message)
        self.state = state

    @property
    def content(self) -> bool:
        """Whether the values of a statement were the reason."""
        return self.state[:2] in _CONTENT


@attrs.frozen
class Statement:
    """A statement that each connection prepares once, or never if it has no name."""

    name: bytes
    sql: bytes


# Makes libpq's connection string for each connection, since the password may be changed meanwhile.
Conninfo: TypeAlias = Callable[[], str]
# A statement with its values, each in binary format.
Call: TypeAlias = tuple[Statement, Sequence["bytes | None"]]
# The rows of an answer, in text format.
Rows: TypeAlias = list[list[bytes | None]]


class Link:
    """One connection; for one thread at a time."""

    def __init__(self, conninfo: Conninfo) -> None:
        """Connect; raises Lost, and Refused for a database that cannot hold a trail."""
        try:
            self._connection = psycopg.Connection.connect(
                conninfo(), autocommit=True, connect_timeout=CONNECT_S, client_encoding="UTF8"
            )
        except psycopg.Error as error:
            raise Lost(one_line(error)) from error
        self._pg = self._connection.pgconn
        self._pg.notice_handler = self._note
        self._warning = ""
        self._prepared: set[bytes] = set()
        self._poll = select.poll()
        self._poll.register(self._pg.socket, select.POLLIN)
        self._wants_write = False
        try:
            if self._pg.parameter_status(b"server_encoding") != b"UTF8":
                raise Refused("22P05", "the database's encoding is not UTF8: create it with ENCODING 'UTF8'")
            self._pg.nonblocking = 1
            self._pg.enter_pipeline_mode()
            self.run([(Statement(b"", _SESSION.encode()), ())], time.monotonic() + CONNECT_S)
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether the connection was closed, by an error or by `close`."""
        return self._connection.closed

    def close(self) -> None:
        """Close the connection; the server rolls an open transaction back."""
        self._connection.close()

    def run(self, calls: Sequence[Call], until_s: float) -> list[Rows]:
        """Run statements in one round trip; returns the rows of each.

        Raises Refused or Lost, and then the connection is closed. A warning counts as Lost: at a commit it
        says that a standby has not confirmed.
        """
        pg = self._pg
        self._warning = ""
        skipped: list[bool] = []
        try:
            for statement, values in calls:
                formats = [pq.Format.BINARY] * len(values)
                if not statement.name:
                    pg.send_query_params(statement.sql, values, None, formats)
                    skipped.append(False)
                    continue
                if statement.name not in self._prepared:
                    pg.send_prepare(statement.name, statement.sql)
                    self._prepared.add(statement.name)
                    skipped.append(True)
                pg.send_query_prepared(statement.name, values, formats)
                skipped.append(False)
            pg.pipeline_sync()
            results = self._results(until_s)
        except psycopg.Error as error:
            self.close()
            raise Lost(one_line(error)) from error
        except BaseException:
            self.close()
            raise
        failed = next((result for result in results if result.status == pq.ExecStatus.FATAL_ERROR), None)
        if failed is not None:
            self.close()
            state = failed.error_field(pq.DiagnosticField.SQLSTATE) or b""
            raise Refused(state.decode(), _message(failed))
        if self._warning:
            self.close()
            raise Lost(self._warning)
        return [_rows(result) for result, skip in zip(results, skipped, strict=True) if not skip]

    def _results(self, until_s: float) -> list[pq.abc.PGresult]:
        """The results up to the end of the pipeline; raises Lost if they have not come by then."""
        pg = self._pg
        found: list[pq.abc.PGresult] = []
        while True:
            self._wait(until_s, write=bool(pg.flush()))
            pg.consume_input()
            ended = False
            while not pg.is_busy():
                result = pg.get_result()
                if result is None:
                    # The first None ends a statement. A second one in a row means that no more has come.
                    if ended:
                        break
                    ended = True
                    continue
                ended = False
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    return found
                if pg.status == pq.ConnStatus.BAD:
                    raise Lost(_message(result))
                found.append(result)
            if pg.status == pq.ConnStatus.BAD:
                raise Lost(_closed(found))

    def _wait(self, until_s: float, *, write: bool) -> None:
        if write is not self._wants_write:
            self._wants_write = write
            self._poll.modify(self._pg.socket, select.POLLIN | select.POLLOUT if write else select.POLLIN)
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not self._poll.poll(math.ceil(left_s * 1000)):
            raise Lost("the database does not answer")

    def _note(self, result: pq.abc.PGresult) -> None:
        if result.error_field(pq.DiagnosticField.SEVERITY_NONLOCALIZED) == b"WARNING":
            self._warning = _message(result)


def _rows(result: pq.abc.PGresult) -> Rows:
    return [
        [result.get_value(row, column) for column in range(result.nfields)] for row in range(result.ntuples)
    ]


def _message(result: pq.abc.PGresult) -> str:
    message = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or result.error_message
    return message.decode("utf-8", "replace").strip()


def _closed(found: Sequence[pq.abc.PGresult]) -> str:
    # If an administrator has ended the connection, the last result has the reason.
    failed = [result for result in found if result.status == pq.ExecStatus.FATAL_ERROR]
    return _message(failed[-1]) if failed else "the database has closed the connection"


def one_line(error: BaseException | None) -> str:
    """The text of an error of libpq, which has a line for each host."""
    text = str(error)
    # With several addresses, psycopg repeats the error of the last one before its list of all.
    _, _, of_all = text.partition("All failures were:")
    lines = (line.strip().removeprefix("- ") for line in (of_all or text).splitlines())
    return "; ".join(filter(None, lines))


def text_of(value: bytes | None) -> str:
    """The text of a column that is never NULL."""
    assert value is not None, "the column is NOT NULL"
    return value.decode()


def integer_of(value: bytes | None) -> int:
    """The integer of a column that is never NULL."""
    return int(text_of(value))


def bytes_of(value: bytes | None) -> bytes:
    """The bytes of a column that was selected as hexadecimal digits."""
    return bytes.fromhex(text_of(value))
