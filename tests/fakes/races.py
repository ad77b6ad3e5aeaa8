"""Two stores on one database, whose changes meet in a chosen order.

One change is stopped right before its commit. The other one then either waits for it or sees none of it, and
after the commit it has to decide by what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event
from typing import Generic, TypeVar

import sqlalchemy as sa

from proxy.hub.store.database import Database
from proxy.hub.store.engines.errors import StoreError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.postgres import PostgresServer

S = TypeVar("S", bound=Database)
T = TypeVar("T")
WAITING = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = '{}'"


class Race(Generic[S]):
    """Two stores, as two hubs open them."""

    def __init__(self, one: S, other: S, address: PostgresAddress, postgres: PostgresServer) -> None:
        self.one, self.other = one, other
        self._engine: sa.Engine = one._engine._engine  # type: ignore[attr-defined]
        self._postgres = postgres
        self._database = sa.make_url(address.url).database

    @contextmanager
    def stopped(self, first: Callable[[S], T]) -> Iterator[Future[T]]:
        """Run a change up to its commit, and let it go on after the block."""
        reached, go = Event(), Event()

        def stop(_: sa.Connection) -> None:
            reached.set()
            assert go.wait(30)

        sa.event.listen(self._engine, "commit", stop)
        try:
            with ThreadPoolExecutor(1) as thread:
                begun = thread.submit(first, self.one)
                assert reached.wait(30)
                try:
                    yield begun
                finally:
                    go.set()
        finally:
            sa.event.remove(self._engine, "commit", stop)

    def race(self, first: Callable[[S], object], second: Callable[[S], T]) -> tuple[object, T | StoreError]:
        """Run the first change up to its commit, begin the second one, and let both end."""
        with ThreadPoolExecutor(1) as thread:
            with self.stopped(first) as begun:
                met = thread.submit(second, self.other)
                self.wait_until_blocked(met)
            error = met.exception()
            if error is not None and not isinstance(error, StoreError):
                raise error
            return begun.result(), error if error is not None else met.result()

    def wait_until_blocked(self, *met: Future[T]) -> None:
        """Wait until each of these changes waits for a lock."""
        while self._postgres.execute(WAITING.format(self._database)) != [(len(met),)]:
            assert not any(each.done() for each in met), "a change did not wait for the other one"


@contextmanager
def racing(
    opened: Callable[[PostgresAddress], S], address: PostgresAddress, postgres: PostgresServer
) -> Iterator[Race[S]]:
    """Open two stores for the block."""
    with closing(opened(address)) as one, closing(opened(address)) as other:
        yield Race(one, other, address, postgres)
