"""The replay cache that all hubs on one data folder, or on one database of PostgreSQL, share.

A hub that starts, or takes over from another one, finds there which tokens were used. So a restart makes no
token valid again. The rows are worthless after a minute or so.

A use waits until it is durable. One thread writes, for as long as the store is open. Uses that arrive while
it writes a batch form the next batch, so many share one flush.

The two tables differ in what happens when they cannot be written:

- The file is for one hub, whose memory (proxy.hub.identity.replay) has every token that it has accepted. So a
  full disk refuses nothing. The log says that a restart forgets these uses.
- PostgreSQL is for several hubs, and no hub's memory has the tokens of another one. A use that is not durable
  within the table's `wait_s` is refused. Until then the writer retries: most failovers take seconds.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Protocol

import attrs
import trio

from tunnel.net.loglimit import LogLimit

# PostgreSQL takes 10 to 60 ms for a batch of this size. A larger one delays the uses in it.
BATCH_USES_MAX = 1000
# Between two attempts to write uses that must not be lost.
RETRY_S = 0.1
# The end of the store waits this long for its thread, which may wait for a database that does not answer.
# Nothing is lost with it: no request waits for a use any more.
LAST_ANSWER_S = 1.0
ATTEMPT_BYTES = 16

_log = logging.getLogger("hawse.hub.seen")


class ReplayStoreUnavailableError(Exception):
    """The use of a token could not be made durable in time, so the token must be refused."""


class UnwrittenError(Exception):
    """A batch was not written; the message is for the log."""


@attrs.define(eq=False)
class Use:
    """The use of a token, and whether it is the first one, once that is known."""

    token: bytes
    """A digest."""
    kept_until: float
    now: float
    attempt: bytes = attrs.Factory(lambda: os.urandom(ATTEMPT_BYTES))
    """Tells this use from a replay when it is written again because an answer was lost."""
    fresh: bool | None = None
    settled: trio.Event = attrs.Factory(trio.Event)


class UseTable(Protocol):
    """The rows of used tokens; for one thread."""

    @property
    def wait_s(self) -> float:
        """How long a use waits for the table. After that it is refused."""
        ...

    @property
    def fails_open(self) -> bool:
        """Whether uses that cannot be written are accepted all the same."""
        ...

    def write(self, uses: Sequence[Use]) -> None:
        """Write uses, and set for each whether it is the first one of its token.

        Raises UnwrittenError. Replays that were found before the failure are set then.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class ReplayStore:
    """Accepts each token once; made by `open_replay_store`."""

    def __init__(self, table: UseTable) -> None:
        self.unwritten = 0
        """Uses that could not be written in time."""
        self._table = table
        self._token = trio.lowlevel.current_trio_token()
        self._failed = LogLimit(_log)
        # A plain lock, taken directly for every use; the condition is entered only to wait.
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        # The lock guards everything below. The replay caches hold the waiting uses too, and bound them.
        self._waiting: dict[Use, None] = {}
        self._stopping = False
        self._retry_at_s = -math.inf

    async def enter(self, kind: str, owner: str, jti: str, kept_until: float, now: float) -> bool:
        """Record the use of a token until `kept_until`, and return whether it is the first use.

        Raises ReplayStoreUnavailableError. Then, and when cancelled, the use may have been recorded.
        """
        # Hashed, since the sender chooses the text and it may be long. Names and owners hold no zero byte.
        digest = hashlib.sha256("\0".join((kind, owner, jti)).encode("utf-8", "surrogatepass")).digest()
        use = Use(digest, kept_until, now)
        with self._lock:
            self._waiting[use] = None
            # With more than one, the writer is not waiting: it writes, or pauses before a retry.
            if len(self._waiting) == 1:
                self._wake.notify()
        try:
            with trio.move_on_after(self._table.wait_s):
                await use.settled.wait()
        finally:
            if not use.settled.is_set():
                with self._lock:
                    self._waiting.pop(use, None)
        if use.fresh is None:
            self.unwritten += 1
            raise ReplayStoreUnavailableError(
                f"the hub's database did not record in {self._table.wait_s:.0f} s that the {kind} is "
                "used: try again"
            )
        return use.fresh

    def stop(self) -> None:
        """End the writer after the batch that it writes."""
        with self._lock:
            self._stopping = True
            self._wake.notify()

    def _settle(self, batch: Sequence[Use], failure: str) -> None:
        for use in batch:
            if use.fresh is not None:
                use.settled.set()
        if failure:
            if self._table.fails_open:
                self.unwritten += len(batch)
            self._failed.warning(failure, trio.current_time())

    # The methods below run in the writer thread.

    def run_writer(self) -> None:
        """Write batches until `stop`; the body of the one writer thread."""
        try:
            while batch := self._next_batch():
                self._write(batch)
        finally:
            self._table.close()

    def _next_batch(self) -> list[Use]:
        """Wait for uses; none means that the writer must end."""
        with self._lock:
            while not self._stopping:
                pause_s = self._retry_at_s - time.monotonic()
                if self._waiting and pause_s <= 0:
                    return list(islice(self._waiting, BATCH_USES_MAX))
                self._wake.wait(pause_s if self._waiting else None)
            return []

    def _write(self, batch: list[Use]) -> None:
        failure = ""
        try:
            self._table.write(batch)
        except UnwrittenError as error:
            failure = str(error)
            if self._table.fails_open:
                for use in batch:
                    use.fresh = use.fresh is not False
            else:
                # All of them stay in the queue until they have waited too long.
                self._retry_at_s = time.monotonic() + RETRY_S
        with self._lock:
            for use in batch:
                if use.fresh is not None:
                    self._waiting.pop(use, None)
        self._token.run_sync_soon(self._settle, batch, failure)


@asynccontextmanager
async def open_replay_store(table: UseTable) -> AsyncIterator[ReplayStore]:
    """Open a store for the block, and close its table after it."""
    store = ReplayStore(table)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_in_thread, store)
        try:
            yield store
        finally:
            store.stop()
            nursery.cancel_scope.deadline = trio.current_time() + LAST_ANSWER_S


async def _run_in_thread(store: ReplayStore) -> None:
    # A limiter of its own, since it keeps its thread permanently. An abandoned thread ends once its database
    # has answered, or has had its time.
    limiter = trio.CapacityLimiter(1)
    await trio.to_thread.run_sync(store.run_writer, abandon_on_cancel=True, limiter=limiter)
