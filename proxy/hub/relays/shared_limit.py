"""The limit of relays over all hubs on one PostgreSQL.

The table of tunnels decides (proxy/hub/membership/tunnels.py). A dial and the end of a session wait for the
next batch, which is one transaction.

If a relay conflicts with one at another hub, that hub is asked over its link whether the relay answers, as
this hub probes its own. A hub that does not reply in time loses the slot: it finds so when it compares the
table with its sessions, and ends the session.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from itertools import islice
from typing import NoReturn

import attrs
import trio

from proxy.hub.membership.tunnels import Admission, Dial, Standing, Tunnel, Tunnels
from proxy.hub.relays.registry import LiveRelay
from proxy.hub.relays.relay_limit import (
    ANSWER_S,
    RelayRefusedError,
    contact_of,
    end_unless_it_answers,
    too_many_relays,
    two_processes,
)
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.engines.postgres_address import PostgresAddress
from tunnel import CloseCode
from tunnel.net.loglimit import LogLimit

# The dials of a transaction, of some milliseconds each. More would delay the first one.
BATCH_MAX = 100
# A relay gives up its tunnel after 10 s. Most failovers take less than this.
WAIT_S = 5.0
# Between two attempts to write a batch.
RETRY_S = 0.25
# The other hub probes its relay for ANSWER_S. This is for the question and the reply.
REPLY_S = 1.0
# How often a hub compares the table with its sessions. A relay that has lost its slot to another one serves
# for this much longer.
COMPARE_EVERY_S = 30.0
# The last batch of a hub that stops. What it cannot delete ends with the hub's row.
LAST_BATCH_S = 2.0

DISPLACED = "another relay has taken its slot while this hub could not be asked"

AskHub = Callable[[str, str, str], Awaitable[bool]]
"""Ask a hub process whether a session answers, for a relay instance; False if it cannot be asked."""

_log = logging.getLogger("hawse.hub.relays")


class SlotUnavailableError(Exception):
    """The table did not decide about a dial in time."""


async def _ask_none(hub_boot: str, session: str, instance: str) -> bool:
    return False


@attrs.define(eq=False)
class _Waiting:
    """A dial that waits for its decision."""

    dial: Dial
    admission: Admission | None = None
    decided: trio.Event = attrs.Factory(trio.Event)


@attrs.define(eq=False)
class _Held:
    """A session of this hub: from its dial until its end."""

    relay: LiveRelay
    tunnel: Tunnel
    admitted: bool = False
    news: str = ""


@attrs.define(eq=False)
class SharedRelayLimit:
    """This hub's part in the limit; made by `open_shared_limit`."""

    _tunnels: Tunnels
    _hub_boot: str
    _relays_per_cluster: int
    ask: AskHub = _ask_none
    """Set once the hub has links."""
    _held: dict[str, _Held] = attrs.Factory(dict)
    """By session."""
    _dials: dict[_Waiting, None] = attrs.Factory(dict)
    _left: dict[str, Tunnel] = attrs.Factory(dict)
    _ended: dict[str, Tunnel] = attrs.Factory(dict)
    """Bounded, as `_left`, by the sessions that the hub had. An entry stays until it is written."""
    _wanted: trio.Event = attrs.Factory(trio.Event)
    _thread: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(1))
    _failed: LogLimit = attrs.Factory(lambda: LogLimit(_log))

    @asynccontextmanager
    async def admitted(self, relay: LiveRelay) -> AsyncIterator[None]:
        """Hold a slot for the relay during the block.

        Raises RelayRefusedError, and SlotUnavailableError if the database did not decide within WAIT_S.
        """
        session = relay.session.session_id
        tunnel = Tunnel(session, contact_of(relay), relay.kid, self._hub_boot, relay.connected_at)
        held = self._held[session] = _Held(relay, tunnel)
        try:
            await self._admit(held)
            yield
        finally:
            del self._held[session]
            # Also when the dial was not decided: its transaction may be under way.
            self._left.pop(session, None)
            self._ended[session] = tunnel
            self._wanted.set()

    async def connected(self, relay: LiveRelay) -> str:
        """Return what is new about an admitted relay; "" if nothing is."""
        return self._held[relay.session.session_id].news

    async def answers(self, session: str, instance: str) -> bool:
        """Whether a session of this hub keeps its slot, now that this relay instance wants one.

        One that does not answer is ended.
        """
        held = self._held.get(session)
        if held is None or not held.relay.stays:
            return False
        await end_unless_it_answers(held.relay, instance)
        return held.relay.stays

    async def elsewhere(self) -> list[Standing]:
        """The tunnels of the other hub processes; raises StoreUnavailableError."""
        found = await trio.to_thread.run_sync(self._tunnels.tunnels, limiter=self._thread)
        return [each for each in found if each.tunnel.hub_boot != self._hub_boot]

    async def run(self) -> NoReturn:
        """Write the batches, and compare the table with the sessions, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._compare_regularly, nursery)
            while True:
                await self._wanted.wait()
                self._wanted = trio.Event()
                while self._dials or self._left or self._ended:
                    if not await self._write():
                        await trio.sleep(RETRY_S)

    async def write_last(self) -> None:
        """Delete the tunnels of a hub that stops; in vain if the database is away."""
        while self._ended and await self._write():
            pass

    # -- decisions

    async def _admit(self, held: _Held) -> None:
        relay, tunnel = held.relay, held.tunnel
        admission = await self._decide(Dial(tunnel))
        if admission.conflicts:
            if silent := await self._silent(admission.conflicts, relay.instance):
                admission = await self._decide(Dial(tunnel, silent))
            if admission.conflicts:
                raise self._refusal(relay, admission.conflicts)
        held.admitted, held.news = True, admission.news

    async def _decide(self, dial: Dial) -> Admission:
        waiting = _Waiting(dial)
        self._dials[waiting] = None
        self._wanted.set()
        try:
            with trio.move_on_after(WAIT_S):
                await waiting.decided.wait()
        finally:
            self._dials.pop(waiting, None)
        if waiting.admission is None:
            raise SlotUnavailableError(
                f"the hub's database did not record the relay in {WAIT_S:.0f} s: try again"
            )
        return waiting.admission

    async def _silent(self, conflicts: Collection[Standing], instance: str) -> frozenset[str]:
        """Ask for each of these tunnels whether it answers, and return the sessions of those that do not."""
        silent = {each.tunnel.session for each in conflicts}

        async def ask(tunnel: Tunnel) -> None:
            answers = False
            if tunnel.hub_boot == self._hub_boot:
                answers = await self.answers(tunnel.session, instance)
            else:
                with trio.move_on_after(ANSWER_S + REPLY_S):
                    answers = await self.ask(tunnel.hub_boot, tunnel.session, instance)
            if answers:
                silent.remove(tunnel.session)

        async with trio.open_nursery() as nursery:
            for each in conflicts:
                nursery.start_soon(ask, each.tunnel)
        return frozenset(silent)

    def _refusal(self, relay: LiveRelay, conflicts: Collection[Standing]) -> RelayRefusedError:
        same = [each for each in conflicts if each.tunnel.contact.instance == relay.instance]
        if same:
            return two_processes(relay, same[0].tunnel.contact.address, same[0].hub)
        instances = {each.tunnel.contact.instance for each in conflicts}
        return too_many_relays(relay, instances, self._relays_per_cluster)

    # -- the table

    async def _write(self) -> bool:
        """Write a batch, and return whether the database took it."""
        dials = list(islice(self._dials, BATCH_MAX))
        left, ended = (list(islice(each.values(), BATCH_MAX)) for each in (self._left, self._ended))
        change = partial(
            self._tunnels.change_tunnels,
            [waiting.dial for waiting in dials],
            left=left,
            ended=ended,
            relays_per_cluster=self._relays_per_cluster,
        )
        try:
            admissions = await trio.to_thread.run_sync(change, limiter=self._thread)
        except StoreUnavailableError as error:
            self._failed.warning(f"cannot record the relays' tunnels: {error}", trio.current_time())
            return False
        for waiting, admission in zip(dials, admissions, strict=True):
            self._dials.pop(waiting, None)
            waiting.admission = admission
            waiting.decided.set()
        for tunnel in left:
            self._left.pop(tunnel.session, None)
        for tunnel in ended:
            self._ended.pop(tunnel.session, None)
        return True

    async def _compare_regularly(self, nursery: trio.Nursery) -> NoReturn:
        while True:
            await trio.sleep(COMPARE_EVERY_S)
            # The next comparison finds the same.
            with suppress(StoreUnavailableError):
                await self._compare(nursery)

    async def _compare(self, nursery: trio.Nursery) -> None:
        """Correct what differs between the table and the sessions."""
        admitted = [held for held in self._held.values() if held.admitted]
        rows = await trio.to_thread.run_sync(self._read_and_close, limiter=self._thread)
        for session, row in rows.items():
            if session not in self._held:
                self._ended[session] = row
        for held in admitted:
            session = held.tunnel.session
            found = rows.get(session)
            if self._held.get(session) is not held:
                continue
            if not held.relay.stays:
                if found is not None and not found.leaving:
                    self._left[session] = found
            elif found is None:
                nursery.start_soon(self._record_again, held)
            elif found.leaving:
                held.relay.end_with(DISPLACED)
        self._wanted.set()

    def _read_and_close(self) -> dict[str, Tunnel]:
        self._tunnels.close_ended()
        return self._tunnels.tunnels_of(self._hub_boot)

    async def _record_again(self, held: _Held) -> None:
        """Record a session whose row is gone, as after a failover that has lost it."""
        try:
            await self._admit(held)
        except RelayRefusedError as error:
            held.relay.end_with(str(error), CloseCode.FORBIDDEN)
        except SlotUnavailableError:
            pass  # the next comparison finds it again


@asynccontextmanager
async def open_shared_limit(
    address: PostgresAddress, *, org: str, hub_boot: str, relays_per_cluster: int
) -> AsyncIterator[SharedRelayLimit]:
    """Take part in the limit for the block; raises StoreUnavailableError.

    At the end, the hub's tunnels are deleted, within LAST_BATCH_S.
    """
    opened = partial(Tunnels, address, org=org, clock=time.time)
    with closing(await trio.to_thread.run_sync(opened)) as tunnels:
        # Those of this hub's earlier processes.
        await trio.to_thread.run_sync(tunnels.close_ended)
        limit = SharedRelayLimit(tunnels, hub_boot, relays_per_cluster)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(limit.run)
                yield limit
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(LAST_BATCH_S, shield=True):
                await limit.write_last()
