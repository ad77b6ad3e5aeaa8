"""Stores events in PostgreSQL, with the interface of audit.store.

The recorder's thread owns the connection. A batch is one transaction, and all of its statements go in one
round trip. Rows and numbers of a batch are fixed before the first attempt. If the answer to the commit is
lost, the same batch is sent again, and a row that is there already stays as it is.

A hub writes in an epoch of its own (audit.postgres.schema). Each of its transactions holds a shared lock on
the epoch, and fails if the epoch is closed. `close_unknown` closes the epochs of dead hubs under the
exclusive lock. So a hub that was taken for dead never writes an end beside the `unknown` of another process
(audit.postgres.late).

If the database is away, `append` waits for it, and with it all intents behind this batch, for at most
`wait_s`. After that it tries once per call, until a batch is written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TypeAlias, TypeVar

from audit.errors import AnotherTrail, AuditUnavailable, CommitUnknown, ContentRefused
from audit.mask import Masks
from audit.postgres import schema, statements
from audit.postgres.batch import Batch, Place, Row, make_batch, slices, unknown_row, whole_row
from audit.postgres.late import LateBatch
from audit.postgres.link import Call, Conninfo, Link, Lost, Refused, Rows, integer_of, text_of
from audit.record import Event
from audit.schema import moment
from audit.shared import CommonParts
from audit.shares import Agent
from audit.store import TrailMark

T = TypeVar("T")
# Returns the row to write for a row, or None, by the ids and phases that the trail has.
Pick: TypeAlias = Callable[[Row, Collection[tuple[str, str]]], Row | None]

# How long an intent waits for a database that is away (`audit.wait_s`).
WAIT_S = 5.0
# A round trip takes milliseconds. Longer than this means that the server is stopped, or cut off.
STATEMENT_S = 5.0
# The shortest limit of a round trip, for the last attempt before `wait_s` is over.
_STATEMENT_S_MIN = 1.0
# Between attempts to reach a database that is away.
_RETRY_S = 0.1
# `append_once` looks for an event among those written from this long before it: two hubs' clocks may differ.
_CLOCKS_US = 3_600_000_000

_log = logging.getLogger("hawse.audit")


class _Closed(AuditUnavailable):
    """Another process has closed the epoch of this one."""


class PostgresStore:
    """The trail in the database of `conninfo`; synchronous, and for one thread at a time.

    Raises AuditUnavailable from every method if the trail cannot be used; the next call retries.
    """

    def __init__(
        self,
        conninfo: Conninfo,
        masks: Masks | None = None,
        *,
        wait_s: float = WAIT_S,
        clock: Callable[[], float] = time.time,
        expected: TrailMark | None = None,
    ) -> None:
        """Open the trail for writing, and create its tables if they are missing and this role may.

        Raises AnotherTrail for any other trail than the expected one, and for an older state of it.
        """
        self._conninfo = conninfo
        self._masks = masks if masks is not None else Masks()
        self._wait_s = wait_s
        self._clock = clock
        self._link: Link | None = None
        self._down = False
        self._limit_s = STATEMENT_S
        # "" until the trail is opened for the first time.
        self._id, self._highest = (expected.id, expected.highest) if expected is not None else ("", 0)
        self._boot, self._epoch = "", 0
        # Of the own epoch: the last event, its time, and the last common part.
        self._newest = self._written = self._last_part = 0
        self._common = CommonParts()
        # The calls without an end.
        self._open_intents: dict[str, Place] = {}
        self._open_intents_read = False
        # A batch whose commit was sent and not answered.
        self._unsure: Batch | None = None
        with self._translated():
            self._retrying(self._linked)

    @property
    def mark(self) -> TrailMark:
        """The trail's identity, and its newest event's time as its progress; callable from any thread."""
        return TrailMark(self._id, self._highest)

    def expect(self, mark: TrailMark) -> None:
        """Accept the trail with this mark, on an operator's word; callable from any thread."""
        self._id, self._highest = mark.id, mark.highest

    def accept(self, make_event: Callable[[TrailMark], Event]) -> TrailMark:
        """Write an event into this trail, which an operator accepts as it is; returns its mark."""
        self.append([make_event(self.mark)])
        return self.mark

    def close(self) -> None:
        """Close the connection; the next use opens it again."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def append(self, batch: Sequence[Event], *, boot: str = "") -> dict[Agent, int]:
        """Write the events in one transaction: durable if it returns, not at all if it raises.

        `boot` names the process, which writes in an epoch of its own; without it, the events go to the shared
        epoch. Returns how many bytes each agent has added. Raises CommitUnknown if the events may have been
        written; then they are, before those of the next call. Raises ContentRefused after writing all others.
        """
        if not batch:
            return {}
        if not boot:
            return self._append_shared([whole_row(self._masks.apply(event)) for event in batch], None)
        events = [self._masks.apply(event) for event in batch]
        made: Batch | None = None

        def attempt() -> Batch:
            nonlocal made
            self._linked()
            self._take_epoch(boot)
            if (unsure := self._unsure) is not None:
                self._write(unsure, again=True)
                if unsure is made:
                    return unsure
            made = make_batch(
                events,
                self._common,
                epoch=self._epoch,
                before=self._newest,
                last_part=self._last_part,
                written=self._now_us(self._written),
            )
            made.find_ends(self._open_intents)
            self._write(made)
            return made

        with self._translated():
            try:
                written = self._retrying(attempt)
            except (Lost, Refused) as error:
                if made is not None and self._unsure is made:
                    raise CommitUnknown(_unavailable(error)) from error
                raise
            except _Closed as error:
                # What is unsure was committed before the epoch was closed, or never is.
                unsure = self._unsure
                before = () if unsure is None or unsure is made else unsure.events
                late = LateBatch.of(events, str(error), before=before)
                if late.rows:
                    self._append_shared(late.rows, late.pick)
                self._unsure = None
                late.check()
                return {}
        if written.refused:
            raise ContentRefused(written.refused, written.shares)
        return written.shares

    def append_once(self, batch: Sequence[Event]) -> None:
        """Write the events that the trail does not have yet, by `eid` and phase, into the shared epoch."""
        rows = [whole_row(self._masks.apply(event)) for event in batch]
        self._append_shared(rows, lambda row, present: None if row[:2] in present else row)

    def _append_shared(self, rows: list[Row], pick: Pick | None) -> dict[Agent, int]:
        """Write rows into the shared epoch; `pick` chooses them by what the trail has."""
        replaced: dict[str, str] = {}

        def attempt() -> Batch:
            made = Batch(0, 0, 0, list(rows))
            calls = [statements.BEGIN, statements.lock(0), statements.numbers(0)]
            if pick is not None:
                since_us = min(row[3] for row in rows) - _CLOCKS_US
                calls.append(statements.present([row[0] for row in rows], since_us))
            answers = self._run(calls)
            made.before, written, _ = map(integer_of, answers[2][0])
            made.written = self._now_us(written)
            if pick is not None:
                present = {(text_of(eid), text_of(phase)) for eid, phase in answers[3]}
                picked = (pick(row, present) for row in made.rows)
                made.rows = [row for row in picked if row is not None]
            if not made.rows:
                self._run([statements.COMMIT])
                return made
            made.find_ends(self._open_intents)
            try:
                self._run([*statements.written(made), statements.COMMIT])
            except Refused as error:
                if not error.content or replaced:
                    raise
                self._sift(made, 0, len(made.rows))
                replaced.update(made.refused)
                rows[:] = made.rows
                return attempt()
            except Lost as error:
                # Other events may have these numbers by now, so this batch cannot be sent again.
                raise AuditUnavailable(f"{_unavailable(error)}; the event may be recorded or not") from error
            self._adopt(made)
            return made

        with self._translated():
            self._retrying(attempt)
        if replaced:
            _log.error("audit: PostgreSQL refused events: %s", replaced)
        return {}

    def close_unknown(
        self, boot: str, now: datetime, *, is_running: Callable[[str], bool] | None = None
    ) -> int:
        """Close the epochs of other boots that no longer run, and end their open calls as `unknown`.

        Returns how many calls there were. `is_running` is called for each boot with an open epoch, except
        `boot`, the caller's own. Without it, no other boot counts as running. No epoch can be opened
        meanwhile. So a boot that shows that it runs before its first intent is never taken for dead.
        """

        def attempt() -> list[str]:
            answers = self._run(
                [statements.BEGIN, statements.lock(0), statements.numbers(0), statements.OPEN_EPOCHS]
            )
            before, written, _ = map(integer_of, answers[2][0])
            found = [(integer_of(epoch), text_of(other)) for epoch, other in answers[3]]
            dead = [
                epoch
                for epoch, other in found
                if other != boot and (is_running is None or not is_running(other))
            ]
            ended: list[str] = []
            for epoch in dead:
                for part in self._close_epoch(epoch, now):
                    made = Batch(0, before, self._now_us(written), part)
                    for n, row in enumerate(made.rows, before + 1):
                        made.ended.add(row[0])
                        # The end is in another epoch than the first row.
                        made.late[row[0]] = n
                    self._run(statements.written(made))
                    before = made.newest
                    ended += [row[0] for row in part]
            self._run([statements.COMMIT])
            return ended

        with self._translated():
            closed = self._retrying(attempt)
        for eid in closed:
            self._open_intents.pop(eid, None)
        return len(closed)

    def _close_epoch(self, epoch: int, now: datetime) -> Iterator[list[Row]]:
        """Close an epoch in the open transaction; yields the ends of its open calls, to be written."""
        # Its lock first: a batch that the writer has just sent is either seen here, or fails.
        first = [statements.lock(epoch)] if epoch else []
        answers = self._run([*first, statements.close(epoch), statements.numbers(epoch)])
        if epoch:
            self._run([statements.index_rest(epoch, integer_of(answers[-1][0][0]))])
        # An end takes its call from the list.
        while opened := self._run([statements.left(epoch)])[0]:
            yield from slices([unknown_row(row, now) for row in opened])

    def _take_epoch(self, boot: str) -> None:
        """Find or open the epoch of this boot."""
        if boot == self._boot:
            return
        answers = self._run(
            [
                *(statements.BEGIN, statements.lock(0), statements.add_epoch(boot)),
                *(statements.find_epoch(boot), statements.COMMIT),
            ]
        )
        epoch = integer_of(answers[3][0][0])
        newest, written, last_part = map(integer_of, self._run([statements.numbers(epoch)])[0][0])
        self._boot, self._epoch = boot, epoch
        self._newest, self._written, self._last_part = newest, written, last_part
        self._common.forget()

    def _write(self, batch: Batch, *, again: bool = False) -> None:
        """Write a batch in the own epoch, in one round trip; raises Lost and Refused."""
        try:
            try:
                self._run(statements.in_epoch(batch, again=again))
            except Refused as error:
                if not error.content:
                    raise
                self._sift(batch, 0, len(batch.rows))
                self._run(statements.in_epoch(batch, again=True))
        except Refused as error:
            self._common.forget()
            if error.state in (schema.EPOCH_CLOSED, schema.EPOCH_LOST):
                kind = _Closed if error.state == schema.EPOCH_CLOSED else AuditUnavailable
                raise kind(f"{error}; restart the hub") from error
            raise
        except Lost:
            self._common.forget()
            self._unsure = batch
            raise
        self._unsure = None
        self._newest, self._written = batch.newest, batch.written
        if batch.parts:
            self._last_part = batch.parts[-1][0]
        self._adopt(batch)

    def _adopt(self, batch: Batch) -> None:
        self._highest = max(self._highest, batch.written)
        for eid, n in batch.opened.items():
            self._open_intents[eid] = batch.epoch, n
        for eid in batch.ended:
            self._open_intents.pop(eid, None)

    def _sift(self, batch: Batch, start: int, end: int) -> None:
        """Find the rows that PostgreSQL refuses, by trying ever smaller parts, and replace them."""
        part = batch.part(start, end)
        try:
            self._run([statements.BEGIN, *statements.written(part), statements.ROLLBACK])
        except Refused as error:
            if not error.content:
                raise
            if end - start == 1:
                batch.refuse(start, str(error))
                return
            middle = (start + end) // 2
            self._sift(batch, start, middle)
            self._sift(batch, middle, end)

    def _run(self, calls: Sequence[Call]) -> list[Rows]:
        return self._linked().run(calls, time.monotonic() + self._limit_s)

    def _linked(self) -> Link:
        """The connection, opened if necessary; raises Lost, Refused and AnotherTrail."""
        if self._link is not None and not self._link.closed:
            return self._link
        self._link = None
        link = Link(self._conninfo)
        try:
            until_s = time.monotonic() + self._limit_s
            schema.prepare(link, until_s)
            ((found, version, highest),) = link.run([statements.IDENTIFY], until_s)[0]
            self._recognise(
                text_of(found), integer_of(version), 0 if highest is None else integer_of(highest)
            )
            if not self._open_intents_read:
                for eid, epoch, n in link.run([statements.ALL_OPEN], until_s)[0]:
                    self._open_intents[text_of(eid)] = integer_of(epoch), integer_of(n)
                self._open_intents_read = True
        except BaseException:
            link.close()
            raise
        self._link = link
        return link

    def _recognise(self, found: str, version: int, highest: int) -> None:
        if version != schema.VERSION:
            raise AuditUnavailable(
                f"the audit trail has schema version {version}, this hawse knows {schema.VERSION}: "
                "use the newer hawse"
            )
        if self._id and found != self._id:
            raise AnotherTrail(
                "the database holds another audit trail than the one that was written until now"
            )
        if highest < self._highest:
            raise AnotherTrail(
                f"the database holds an older state of the audit trail, which ends at {moment(highest)} "
                f"instead of {moment(self._highest)}"
            )
        self._id, self._highest = found, highest

    def _retrying(self, attempt: Callable[[], T]) -> T:
        """Repeat an attempt while the database is away, for `wait_s`; once only if it was away before."""
        waits = self._wait_s > 0 and not self._down
        until_s = time.monotonic() + (self._wait_s if waits else 0)
        while True:
            left_s = until_s - time.monotonic()
            self._limit_s = min(STATEMENT_S, max(left_s, _STATEMENT_S_MIN)) if waits else STATEMENT_S
            try:
                found = attempt()
            except (Lost, Refused):
                if time.monotonic() + _RETRY_S >= until_s:
                    self._down = True
                    raise
                time.sleep(_RETRY_S)
            except BaseException:
                # A transaction may be open, and hold its locks.
                self.close()
                raise
            else:
                self._down = False
                return found

    def _now_us(self, last_us: int) -> int:
        """The time of a new batch, never before that of the last one."""
        return max(last_us, int(self._clock() * 1_000_000))

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (Lost, Refused) as error:
            raise AuditUnavailable(_unavailable(error)) from error


def _unavailable(error: Exception) -> str:
    return f"the audit trail in PostgreSQL is unavailable: {error}"
