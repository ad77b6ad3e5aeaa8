"""A relay with an API server of the test behind it, and the hub's end of its tunnel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
import trio.testing

from proxy.relay import tunnelled
from proxy.relay.exchange import Upstream
from proxy.relay.pool import Pool, open_pool
from tests.proxy.relay.apiserver import OK, ApiServer, Connection, Script, running
from tests.proxy.relay.ways import NONCE, Answer, TunnelWay, hubs, inner, tell_time
from tunnel import Hello, Role, Welcome, memory_transport_pair, open_session

TARGET = b"/api/v1/namespaces/a/pods"


@attrs.define(eq=False)
class Tasks(trio.abc.Instrument):
    """The streams that got a task."""

    names: list[str] = attrs.Factory(list)
    running: int = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith("TunnelCall.dial"):
            self.names.append(task.name)
            self.running += 1

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith("TunnelCall.dial"):
            self.running -= 1


@attrs.frozen
class Rig:
    way: TunnelWay
    server: ApiServer
    pool: Pool
    upstream: Upstream
    serving: trio.CancelScope
    tasks: Tasks

    async def warm(self) -> None:
        """Leave one kept connection behind."""
        assert (await self.way.ask(inner(b"/warm"))).status == 200
        await trio.testing.wait_all_tasks_blocked()
        assert self.pool.connections.idle_count == 1
        self.tasks.names.clear()

    async def at_rest(self) -> None:
        """Wait until nothing is under way, which has to come soon."""
        assert await self.upstream.underway.wait_drained(5)

    async def ask(
        self, target: bytes = TARGET, *extra: tuple[bytes, bytes], method: bytes = b"GET"
    ) -> Answer:
        with trio.fail_after(5):
            return await self.way.ask(inner(target, *extra, method=method))


@asynccontextmanager
async def rig(script: Script, folder: Path) -> AsyncIterator[Rig]:
    """A relay in front of an API server that answers `/warm`, and then does as the script says."""
    warmed = 0

    async def scripted(connection: Connection) -> None:
        nonlocal warmed
        if warmed == 0:
            warmed = 1
            await connection.request()
            await connection.send(OK)
        await script(connection)

    tasks = Tasks()
    async with running(scripted, folder) as server, open_pool(server.access) as pool:
        at_hub, at_relay = memory_transport_pair()
        upstream, serving = Upstream(pool), trio.CancelScope()

        async def run_relay() -> None:
            async with open_session(at_relay, Role.DIALER, hello=Hello(nonce=NONCE)) as session:
                with serving:
                    await tunnelled.serve_session(session, upstream, hubs=hubs())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_relay)
            async with open_session(at_hub, Role.LISTENER, answer_hello=lambda _: Welcome()) as session:
                tell_time(session)
                trio.lowlevel.add_instrument(tasks)
                try:
                    yield Rig(TunnelWay(session), server, pool, upstream, serving, tasks)
                finally:
                    trio.lowlevel.remove_instrument(tasks)
            nursery.cancel_scope.cancel()
