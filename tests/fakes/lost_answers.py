"""Connections to PostgreSQL that are lost during a round trip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from audit.postgres.link import Call, Link, Lost, Rows


@contextmanager
def lost_answers(
    monkeypatch: pytest.MonkeyPatch, *, arrives: bool, runs: int = 1, set_up: bool = True
) -> Iterator[list[list[bytes]]]:
    """The connection is lost in the next `runs` round trips, before or after the server has committed.

    Without `set_up`, the round trips of a new connection are spared, whose statements have no names. Yields
    the names of the statements in each of the others.
    """
    run, sent = Link.run, list[list[bytes]]()

    def broken(link: Link, calls: Sequence[Call], until_s: float) -> list[Rows]:
        if not (set_up or calls[0][0].name):
            return run(link, calls, until_s)
        sent.append([statement.name for statement, _ in calls])
        if len(sent) > runs:
            return run(link, calls, until_s)
        if arrives:
            run(link, calls, until_s)
        link.close()
        raise Lost("the connection is lost")

    with monkeypatch.context() as patched:
        patched.setattr(Link, "run", broken)
        yield sent
