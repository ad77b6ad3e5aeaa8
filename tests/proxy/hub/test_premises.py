"""Where a hub lives, with real sockets, real locks."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import attrs
import pytest
import trio
import trio.testing

from proxy.configuration import Address
from proxy.hub.adminfront import AdminFront
from proxy.hub.config import AdminConfig, HubConfig
from proxy.hub.datadir import DataDir
from proxy.hub.front import Front
from proxy.hub.handover import take_over
from proxy.hub.premises import Acceptor, Premises, open_premises


@attrs.define(eq=False)
class Handler:
    """Both fronts: it holds each connection until it may go, even when it is cancelled."""

    ready: bool = False
    holds: trio.Event = attrs.Factory(trio.Event)
    may_go: trio.Event = attrs.Factory(trio.Event)

    async def handle_client(self, _: trio.abc.Stream) -> None:
        self.holds.set()
        # As a change of the store in a thread does.
        with trio.CancelScope(shield=True):
            await self.may_go.wait()


@pytest.fixture
def data(tmp_path: Path) -> DataDir:
    return DataDir.open(tmp_path / "data")


def configured(data: DataDir) -> HubConfig:
    anywhere = Address("127.0.0.1", 0)
    return HubConfig(listen=anywhere, admin=AdminConfig(listen=anywhere), data_dir=data.path)


@asynccontextmanager
async def premises_of(data: DataDir, *, replace: bool = False) -> AsyncIterator[Premises]:
    with trio.fail_after(20):
        async with open_premises(configured(data), data, "new", replace=replace) as premises:
            yield premises


def acceptor_of(premises: Premises, handler: Handler, handlers: trio.Nursery) -> Acceptor:
    return Acceptor(premises, cast("Front", handler), cast("AdminFront", handler), handlers)


@attrs.define(eq=False)
class Hub:
    """One that accepts, and how it ended."""

    acceptor: Acceptor
    signals: trio.MemorySendChannel[int]
    replaced: bool | None = None
    ended: trio.Event = attrs.Factory(trio.Event)


@asynccontextmanager
async def accepting(premises: Premises, handler: Handler) -> AsyncIterator[Hub]:
    async with trio.open_nursery() as handlers:
        send, receive = trio.open_memory_channel[int](1)
        hub = Hub(acceptor_of(premises, handler, handlers), send)

        async def run() -> None:
            hub.replaced = await hub.acceptor.accept_until_told(receive, "url")
            hub.ended.set()

        handlers.start_soon(run)
        while not handler.ready:
            await trio.testing.wait_all_tasks_blocked()
        yield hub
        handler.may_go.set()
        handlers.cancel_scope.cancel()


async def test_a_stop_during_the_pause_does_not_keep_the_successor_waiting(data: DataDir) -> None:
    handler = Handler()
    async with premises_of(data) as premises, accepting(premises, handler) as hub:
        operator = await trio.open_tcp_stream(*premises.admin[1][0].getsockname())
        await handler.holds.wait()
        succession = await take_over(data)
        assert succession is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(succession.claim)
            # The operator's change is in the way of the pause.
            await trio.testing.wait_all_tasks_blocked()
            await hub.signals.send(signal.SIGTERM)
            await trio.testing.wait_all_tasks_blocked()
            handler.may_go.set()
        await succession.confirm()
        await hub.ended.wait()
        assert hub.replaced
        succession.close()
        succession.door.close()
        succession.lock.release()
        await operator.aclose()


async def test_nothing_is_left_to_pause_once_the_accepting_has_ended(data: DataDir) -> None:
    handler = Handler()
    async with premises_of(data) as premises, accepting(premises, handler) as hub:
        await hub.signals.send(signal.SIGTERM)
        await hub.ended.wait()
        with trio.fail_after(1):
            await hub.acceptor.pause()
        assert hub.replaced is False
