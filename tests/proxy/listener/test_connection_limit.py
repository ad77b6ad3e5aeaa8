from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from proxy.listener.connection_limit import ConnectionLimit, ConnectionLimitError, CountedConnection
from tunnel.net.loglimit import LogLimit


async def test_the_oldest_unauthenticated_connection_is_evicted_and_no_authenticated_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limit = ConnectionLimit(LogLimit(logging.getLogger("hawse.test"), at_once=8))
    connections: dict[str, CountedConnection] = {}
    ended: list[str] = []

    async def connection(name: str) -> None:
        with limit.counted(2) as connections[name]:
            await trio.sleep_forever()
        ended.append(name)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third", "fourth"):
            nursery.start_soon(connection, name)
            await wait_all_tasks_blocked()
            if name == "second":
                connections["second"].set_client()
        assert (ended, limit.open) == (["first", "third"], 2)
        # One that has made room is known too late.
        connections["third"].set_client()
        connections["fourth"].set_client()
        with pytest.raises(ConnectionLimitError, match="2 are open"), limit.counted(2):
            raise AssertionError
        nursery.cancel_scope.cancel()
    assert limit.open == 0
    assert [record.getMessage() for record in caplog.records] == [
        *["evicted the oldest unauthenticated connection, or one of many of one token: 2 are open, the limit"]
        * 2,
        "refused a connection: 2 are open, the limit",
    ]


async def test_many_that_come_at_once_end_as_many(caplog: pytest.LogCaptureFixture) -> None:
    limit = ConnectionLimit(LogLimit(logging.getLogger("hawse.test")))

    async def connection() -> None:
        with limit.counted(2):
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(connection)
        await wait_all_tasks_blocked()
        # None of the evicted ones has run its cleanup yet.
        for _ in range(2):
            nursery.start_soon(connection)
        await wait_all_tasks_blocked()
        assert limit.open == 2
        nursery.cancel_scope.cancel()
    assert (limit.open, len(caplog.records)) == (0, 1)
