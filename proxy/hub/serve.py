"""The hub as a whole: what it opens, in which order, who owns it, and how it stops.

From the outside in: the sign of life, the data folder's lock, the directory, the audit recorder, the handlers
of connections, the accepting of connections. So accepting stops first and what is under way may finish; then
the sessions; the recorder is the last to close, since each of the others has something to say at its end.

A hub that is replaced (`--replace`) gives its sockets away and goes on like one that was told to stop, but
for a longer time: its place is taken, and nobody waits for its end.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from importlib.metadata import version

import trio

from audit.ids import new_eid
from audit.mask import Masks
from audit.record import Kind
from audit.recorder import open_recorder
from audit.store import AuditStore
from proxy.exchange.inflight_memory import HeldUp
from proxy.hub.accept import Acceptor
from proxy.hub.admin.actions.administration import Administration
from proxy.hub.admin.api import admin_app
from proxy.hub.admin.front import AdminFront, LiveRelays, ensure_local_token, note_relays_seen, write_endpoint
from proxy.hub.admin.live_calls import LiveSessions
from proxy.hub.admin.metrics import MemoryCollector, SeenCollector, TrailCollector, hub_metrics
from proxy.hub.admin.revocations import Revocations, carry_out_again
from proxy.hub.authorize.access import AccessTokens
from proxy.hub.authorize.events import Trail
from proxy.hub.calls.calls import Calls
from proxy.hub.calls.metrics import CallMetrics
from proxy.hub.calls.starts import Starts
from proxy.hub.calls.trail_watch import TrailWatch
from proxy.hub.front import Front
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import HubConfig
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.hub_instances import HubInstances, close_calls_of_ended_hubs
from proxy.hub.home.keyring import KeyRing
from proxy.hub.home.reserve import open_reserve
from proxy.hub.identity.enrol import EnrolmentEndpoint
from proxy.hub.identity.replay_store import SeenStore
from proxy.hub.identity.token import TokenEndpoint
from proxy.hub.relays.cluster_state import cluster_state
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.endpoint import RelayEndpoint
from proxy.hub.relays.pins import Pins
from proxy.hub.relays.registry import Registry
from proxy.hub.restart.instance_lock import InstanceLock, open_instance_lock
from proxy.hub.store.directory import USE_WRITTEN_EVERY_S, open_directory
from proxy.hub.store.store import Store
from proxy.listener.unauthenticated import place_of
from proxy.process.drain import PLAIN_S
from proxy.process.filelimit import raise_file_limit
from proxy.process.malloc_trim import give_back_when_quiet
from proxy.process.plural import counted
from proxy.process.signals import stop_signals
from proxy.process.startup import settle

# Whose relays may be expected back when the hub starts: those that were there this long before. An operator
# may take some minutes from the old hub's end to the new one's start.
SEEN_RECENTLY_S = 600.0
# Between two looks whether the agents' connections have ended.
IDLE_LOOK_S = 0.25

_log = logging.getLogger("hawse.hub")


async def run_hub(config: HubConfig, *, replace: bool = False) -> int:
    """Run the hub until SIGTERM or SIGINT, or until another one has replaced it; returns the exit status.

    With `replace` it takes the place of the hub that runs on the same data folder, if one does. Raises, some
    from within exception groups, DataDirError, FileError, StoreUnavailableError and AuditUnavailable, and
    OSError when it cannot listen; the hub that was to be replaced then goes on.
    """
    raise_file_limit()
    data = DataDir.open(config.data_dir)
    boot = new_eid()
    software = f"hawse/{version('hawse')}"
    trail = Trail(config.org)
    async with AsyncExitStack() as stack:
        # Who starts is killed by a signal, and who has served is not before all is written and closed.
        stopping = stack.enter_context(ExitStack())
        instances = HubInstances(data.instances_dir)
        # Once it is gone this hub does nothing to the folder any more.
        stack.enter_context(instances.registered(boot))
        instance = await stack.enter_async_context(open_instance_lock(config, data, boot, replace=replace))
        data.check_databases()
        pepper = data.pepper()
        registry = Registry()
        ring = KeyRing(data, issuer=config.public_url, clock=time.time, on_rotation=registry.announce_keys)
        certificate = Certificate.open(config, data, time.time)
        reserve = open_reserve(data.reserve_file)
        stack.callback(reserve.close)
        revocations = Revocations(reserve)
        masks = Masks(config.audit.mask)
        # Before the trail, of which it knows which one that is.
        directory = await stack.enter_async_context(
            open_directory(
                data.store_file, org=config.org, clock=time.time, shared=instance.predecessor is not None
            )
        )
        expected = directory.current.trail
        store = await trio.to_thread.run_sync(partial(AuditStore, data.audit_file, masks, expected=expected))
        stack.callback(store.close)
        # When all is written, and before the directory writes for the last time.
        stack.callback(lambda: directory.note_trail(store.mark))
        recorder = await stack.enter_async_context(
            open_recorder(store, org=config.org, boot=boot, lives=instances.is_running, place_of=place_of)
        )
        if expected is None:
            await directory.change(partial(Store.accept_trail, trail=store.mark))
        seen = SeenStore(data.seen_file)
        stack.callback(seen.close)
        recorder.complete(trail.hub(Kind.HUB_STARTED, software))
        await ensure_local_token(data, directory, pepper)
        tell_endpoint = partial(write_endpoint, config, data, certificate.chain)
        async with trio.open_nursery() as upkeep:
            upkeep.start_soon(directory.run_use_writer)
            upkeep.start_soon(close_calls_of_ended_hubs, instances, boot, data.audit_file, masks, time.time)
            upkeep.start_soon(directory.run_look)
            direct = DirectRelays(
                keys=lambda: ring.current,
                issuer=config.public_url,
                new_id=new_eid,
                nursery=upkeep,
                enrolled=lambda: directory.current.clusters_by_id.keys(),
                pins=Pins(directory, recorder, trail),
            )
            live_relays = LiveRelays(registry, time.time, direct)
            metrics = hub_metrics(directory, live_relays)
            metrics.register(SeenCollector(seen))
            calls = Calls(
                config=config,
                directory=directory,
                tokens=AccessTokens(lambda: ring.current.public, issuer=config.public_url, org=config.org),
                registry=registry,
                direct=direct,
                recorder=recorder,
                trail=trail,
                observe=CallMetrics(metrics).observe,
            )
            metrics.register(MemoryCollector(calls.memory))
            upkeep.start_soon(HeldUp(calls.memory, calls.live, calls.live.end_for_memory).run)
            directory.on_change(calls.live.reconsider)
            upkeep.start_soon(calls.live.run)
            upkeep.start_soon(calls.live.run_timed, lambda: directory.current.bundle.timed)
            upkeep.start_soon(calls.limits.run, calls.live)
            watch = TrailWatch(store, directory, recorder, calls.live, config.audit.down_grace_s, trail.hub)
            directory.on_change(watch.follow)
            metrics.register(TrailCollector(watch))
            upkeep.start_soon(watch.run_grace)
            upkeep.start_soon(watch.run_disk)
            upkeep.start_soon(Starts(calls).run)
            relays = RelayEndpoint(
                config=config,
                directory=directory,
                registry=registry,
                keys=lambda: ring.current,
                recorder=recorder,
                trail=trail,
                memory=calls.memory,
                boot=boot,
                software=software,
                new_id=new_eid,
                pepper=pepper,
                seen=seen,
            )
            directory.on_change(relays.end_revoked)
            upkeep.start_soon(relays.run)
            tokens = TokenEndpoint(
                directory=directory,
                keys=lambda: ring.current,
                pepper=pepper,
                issuer=config.public_url,
                record=recorder.complete,
                clock=time.time,
                seen=seen,
                limits=config.limits,
                recording=lambda: recorder.healthy,
                cluster_hosts=config.cluster_hosts,
                audit_debt=calls.limits.audit_debt,
                state_of=partial(cluster_state, registry=registry, direct=direct),
            )
            front = Front(
                certificate=certificate,
                calls=calls,
                relays=relays,
                tokens=tokens,
                enrolment=EnrolmentEndpoint(directory, pepper, config.public_url, recorder, time.time),
                recorder=recorder,
                trail=trail,
                clock=time.time,
            )
            upkeep.start_soon(front.run)
            upkeep.start_soon(give_back_when_quiet)
            administration = Administration.of(
                directory=directory,
                ring=ring,
                pepper=pepper,
                public_url=config.public_url,
                hub_ca=lambda: certificate.ca_pem,
                version=version("hawse"),
                operations=live_relays,
                live_sessions=LiveSessions(calls.live, instances, boot),
                relays_per_cluster=config.limits.relays_per_cluster,
            )
            app = admin_app(administration, recorder, metrics, time.time, revocations)
            admin = AdminFront(app, certificate)
            directory.on_change(partial(admin.doubt_revoked, directory))
            settle()
            if await instance.pause_old_hub():
                # The one before may have changed them while this one prepared.
                ring.reload()
            # The one before may have added to them until then.
            await carry_out_again(revocations, revocations.left(), administration, recorder)
            # Not before: what keeps the folder's files writes what this hub knows of them.
            keeping = trio.CancelScope()
            upkeep.start_soon(
                _keep,
                keeping,
                ring.run,
                partial(certificate.keep_current, tell_endpoint),
                certificate.tell_of_the_end,
                partial(note_relays_seen, registry, directory, USE_WRITTEN_EVERY_S),
            )
            # As the one before has left them; its relays come back to this one.
            recent = await directory.read(partial(Store.clusters_seen, since=time.time() - SEEN_RECENTLY_S))
            registry.arrivals.expect(recent)
            await directory.change(Store.close_relays)
            tell_endpoint()
            signals = stopping.enter_context(stop_signals())
            await _serve(config, signals, instance, front, admin, keeping)
            upkeep.cancel_scope.cancel()
    _log.info("the hub has stopped")
    return signals.exit_status


async def _serve(
    config: HubConfig,
    signals: AsyncIterator[int],
    instance: InstanceLock,
    front: Front,
    admin: AdminFront,
    keeping: trio.CancelScope,
) -> None:
    """Accept and handle connections until a signal or a successor comes, and then finish what was begun."""
    async with trio.open_nursery() as handlers:
        acceptor = Acceptor(instance, front, admin, handlers)
        replaced = await acceptor.accept_until_stopped(signals, config.public_url)
        front.deadlines.ending = True
        if replaced:
            # The folder and the relays' rows in the store are the other one's to keep.
            keeping.cancel()
        grace_s = config.stop.replaced_grace_s if replaced else config.stop.grace_s
        front.relays.leave(grace_s, replaced=replaced)
        async with trio.open_nursery() as finishing:
            finishing.start_soon(_hurry, signals, front, finishing.cancel_scope)
            await _finish(front, grace_s, replaced=replaced)
            finishing.cancel_scope.cancel()
        handlers.cancel_scope.cancel()


async def _keep(keeping: trio.CancelScope, *tasks: Callable[[], Awaitable[None]]) -> None:
    """Do what keeps the data folder, as long as that is this hub's to do."""
    with keeping:
        async with trio.open_nursery() as nursery:
            for run in tasks:
                nursery.start_soon(run)


async def _hurry(signals: AsyncIterator[int], front: Front, finishing: trio.CancelScope) -> None:
    async for number in signals:
        name, cut = signal.Signals(number).name, counted(front.calls.live.count, "call")
        _log.warning("%s again: cutting %s", name, cut)
        finishing.cancel()


async def _finish(front: Front, grace_s: float, *, replaced: bool) -> None:
    """Wait for the end of what is under way, for the grace at most.

    Agents keep connections open between two calls, and one that is closed then may meet a call that is on its
    way. So a hub that was replaced waits for their next call, answers it as the last one of its connection,
    and closes what is still idle after a minute.
    """
    underway = front.calls.live
    _log.info(
        "%s under way, %d of them streams, with %.0f s to end (%.0f s what is no stream); "
        "another signal cuts all",
        counted(underway.count, "call"), underway.long, grace_s, min(PLAIN_S, grace_s),
    )  # fmt: skip
    idle_until = trio.current_time() + (PLAIN_S if replaced else 0.0)
    with trio.move_on_after(grace_s):
        while await underway.wait_drained(grace_s):
            if not front.deadlines.watched or trio.current_time() >= idle_until:
                break
            await trio.sleep(IDLE_LOOK_S)
