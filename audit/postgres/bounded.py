"""A connection of psycopg with a deadline for each answer, for SQLAlchemy."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, ClassVar, TypeVar

import psycopg

T = TypeVar("T")


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is closed when an answer takes longer than `answer_s`.

    The kernel of a stopped server still acknowledges, so no timeout of libpq or TCP would end the wait.
    """

    answer_s: ClassVar[float]

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """Run a generator of psycopg, which is resumed several times a second while nothing comes."""
        return super().wait(self._bounded(gen), *args, **options)

    def _bounded(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        until_s = time.monotonic() + self.answer_s
        try:
            awaited = next(gen)
            while True:
                ready = yield awaited
                if not ready and time.monotonic() >= until_s:
                    self.pgconn.finish()
                    raise psycopg.OperationalError("the database does not answer")
                awaited = gen.send(ready)
        except StopIteration as ended:
            found: T = ended.value
            return found
