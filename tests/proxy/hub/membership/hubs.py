"""Hubs on one real database, up to their leases, for the tests of these."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, closing
from functools import partial

import attrs
import trio

from audit.mask import Masks
from proxy.hub.home.hub_instances import close_unknown
from proxy.hub.home.trails import open_trail
from proxy.hub.membership.lease import Joining, open_members
from proxy.hub.membership.members import Members
from proxy.hub.membership.running import RunningHubs
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.engines.postgres import conninfo_of
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tests.proxy.hub.membership.rows import member


@attrs.frozen
class Hub:
    """A hub that has joined."""

    members: Members
    directory: Directory


@asynccontextmanager
async def joined(
    database: PostgresAddress,
    boot: str,
    *,
    place: str = "",
    running: Collection[str] = (),
    polls: bool = True,
    **stated: object,
) -> AsyncIterator[Hub]:
    """Join the hubs of a database for the block; without `polls` it applies no other hub's changes."""
    async with open_directory(database, org="main", clock=time.time) as directory:
        open_store = partial(open_trail, database, Masks())
        with closing(await trio.to_thread.run_sync(open_store)):
            me = member(boot, applied=directory.applied.version.number, **stated)
            is_running = RunningHubs(partial(conninfo_of, database), me.hub, running.__contains__).is_running
            joining = Joining(
                conninfo=partial(conninfo_of, database),
                directory=directory,
                me=me,
                place=place or boot,
                running=lambda: running,
                close_calls=partial(close_unknown, partial(open_store, make=False), boot, is_running),
            )
            async with open_members(joining) as members, trio.open_nursery() as nursery:
                if polls:
                    nursery.start_soon(directory.run_poll)
                yield Hub(members, directory)
                nursery.cancel_scope.cancel()
