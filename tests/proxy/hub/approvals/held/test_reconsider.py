from __future__ import annotations

from pathlib import Path

import trio
from trio.testing import MockClock

from proxy.hub.approvals.held.reconsider import Reconsider
from proxy.hub.approvals.request import State
from tests.fakes.requests import FakeRequests
from tests.proxy.hub.approvals.requests.bench import new_request, populate


async def test_requests_are_judged_again_once_the_store_is_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Without another change of the policies."""
    snapshot = populate(tmp_path / "store.db")
    requests = FakeRequests()
    # No policy asks about it.
    await requests.open(new_request(snapshot))
    requests.away = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Reconsider(requests, lambda: snapshot).run)
        await trio.sleep(30)
        assert requests.states == [State.PENDING]
        requests.away = False
        await trio.sleep(30)
        assert requests.states == [State.CANCELLED]
        nursery.cancel_scope.cancel()
