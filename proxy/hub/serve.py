"""The whole hub: the resources that it opens, their order and owners, and how it stops.

From the outside in: the instance's registration, the instance lock, the directory, the audit recorder, the
handlers of connections, the accepting of connections. They close in reverse: accepting stops first, open
calls may finish, then the sessions end. The recorder closes after these, because each of them records its
end.

A hub that is replaced (`--replace`) hands its sockets over and then drains like a stopped one, but for
longer: its successor serves already, so its end is not urgent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import attrs
import trio
from prometheus_client import CollectorRegistry

from audit.ids import new_eid
from audit.record import Kind
from proxy.exchange.inflight_memory import HeldUp
from proxy.hub.accept import Acceptor
from proxy.hub.admin.front import LiveRelays, ensure_local_token, note_relays_seen, write_endpoint
from proxy.hub.admin.metrics.calls import CallMetrics
from proxy.hub.admin.metrics.hub import (
    ConnectionsCollector,
    DatabaseCollector,
    MemoryCollector,
    ReplayCollector,
    RequestsCollector,
    TrailCollector,
    hub_metrics,
)
from proxy.hub.admin.metrics.process import ProcessMetrics
from proxy.hub.admin.revocations import repeat_revocations
from proxy.hub.administering import Managed, start_administration
from proxy.hub.approving import start_approvals, start_webhooks
from proxy.hub.authorize.access import AccessTokens
from proxy.hub.calls.calls import Calls
from proxy.hub.calls.starts import Starts
from proxy.hub.console.start import Handle, start_console
from proxy.hub.front import Front
from proxy.hub.health.stale_watch import StaleWatch
from proxy.hub.health.trail_watch import TrailWatch
from proxy.hub.home.config import HubConfig
from proxy.hub.home.hub_instances import close_calls_of_ended_hubs
from proxy.hub.identity.enrol import EnrolmentEndpoint
from proxy.hub.identity.token import TokenEndpoint
from proxy.hub.membership.members import LostLeaseError
from proxy.hub.peering import Links, Peering
from proxy.hub.relays.cluster_state import cluster_state
from proxy.hub.relays.dial_auth import DialAuth
from proxy.hub.relays.direct import DirectRelays
from proxy.hub.relays.endpoint import RelayEndpoint
from proxy.hub.relays.pins import Pins
from proxy.hub.relays.registry import Registry
from proxy.hub.resources import Resources, open_approvals, open_home, open_limit, open_records, open_replays
from proxy.hub.stop import Stop
from proxy.hub.store.directory import USE_WRITTEN_EVERY_S
from proxy.hub.store.engines.listener import listen
from proxy.hub.store.store import Store
from proxy.hub.store.versions.version import CHANNEL
from proxy.process.lifecycle.filelimit import raise_file_limit
from proxy.process.lifecycle.signals import stop_signals
from proxy.process.lifecycle.startup import settle_later
from proxy.process.memory.malloc_trim import trim_when_idle
from proxy.process.metrics.expiry import watch_expiry
from proxy.process.metrics.loop_lag import LoopLag
from proxy.process.version import VERSION

# Relays that were connected this long before the start are expected to reconnect. An operator may take some
# minutes between the old hub's end and the new one's start.
SEEN_RECENTLY_S = 600.0
# The exit status of a hub that others have taken for dead. Its supervisor starts it again.
LOST_LEASE = 4

_log = logging.getLogger("hawse.hub")


async def run_hub(config: HubConfig, *, replace: bool = False) -> int:
    """Run the hub until SIGTERM or SIGINT, or until another hub has replaced it; returns the exit status.

    Also until it has lost its lease: the status is LOST_LEASE then.

    With `replace` it takes over from the hub that runs on the same data folder, if one does. Raises, some
    from within exception groups, DataDirError, FileError, StoreUnavailableError and AuditUnavailable, and
    OSError when it cannot listen; the hub that was to be replaced then continues.
    """
    raise_file_limit()
    try:
        return await _run(config, replace=replace)
    except* LostLeaseError:
        # The lease has logged why.
        pass
    return LOST_LEASE


async def _run(config: HubConfig, *, replace: bool) -> int:
    registry = Registry()
    # A signal during the start kills the process. Once it serves, signals are caught until everything is
    # written and closed.
    with ExitStack() as stopping:
        async with (
            open_home(config, replace=replace) as home,
            open_records(config, home, registry) as records,
        ):
            async with (
                open_replays(config, home) as seen,
                open_limit(config, records) as shared_limit,
                open_approvals(config, home, records) as requests,
            ):
                records.recorder.complete(records.trail.hub(Kind.HUB_STARTED, _software()))
                async with trio.open_nursery() as upkeep:
                    hub = Resources(config, home, records, seen, shared_limit, registry, requests, upkeep)
                    pepper = records.secrets.pepper
                    await ensure_local_token(home.data, records.directory, pepper, hub.local_token)
                    parts = _start(hub)
                    upkeep.start_soon(settle_later)
                    keeping = await _take_over(hub, parts.managed)
                    signals = stopping.enter_context(stop_signals())
                    await _serve(hub, signals, parts, keeping)
                    upkeep.cancel_scope.cancel()
    _log.info("the hub has stopped")
    return signals.exit_status


@attrs.frozen
class _Parts:
    """What serves connections."""

    front: Front
    managed: Managed
    peering: Peering | None
    show: Handle | None
    """Serves a connection of the console; None without one."""


def _start(hub: Resources) -> _Parts:
    """Build all parts and start their background tasks. The listeners do not accept yet."""
    home, directory = hub.home, hub.records.directory
    start = hub.upkeep.start_soon
    start(directory.run_use_writer)
    start(close_calls_of_ended_hubs, home.instances, home.boot, hub.records.joined.close_calls)
    start(directory.run_poll)
    if (address := hub.config.database.address) is not None:
        start(listen, address, CHANNEL, directory.poll_soon)
    direct = _start_direct(hub)
    live_relays = LiveRelays(
        hub.registry, time.time, direct, lambda: directory.current.clusters_by_id, hub.hub_id or "",
        hub.shared_limit,
    )  # fmt: skip
    metrics = hub_metrics(directory, live_relays)
    metrics.register(RequestsCollector(hub.requests))
    lag = LoopLag()
    start(lag.run)
    metrics.register(ProcessMetrics(hub.records.recorder, lag, watch_expiry(home.certificate.chain)))
    if (watch := hub.records.watch) is not None:
        metrics.register(DatabaseCollector(watch))
        start(watch.run_clock)
    calls, trail_watch = _start_calls(hub, direct, metrics)
    start_approvals(hub, calls)
    start_webhooks(hub, metrics)
    front = _start_front(hub, direct, calls, _start_relays(hub, calls))
    metrics.register(ReplayCollector(hub.seen, front.enrolment))
    metrics.register(ConnectionsCollector(front.unauthenticated))
    start(trim_when_idle)
    peering = _start_peering(hub, front)
    managed = start_administration(hub, front, calls, trail_watch, live_relays, peering, metrics)
    show = start_console(
        hub.config,
        hub.home.certificate,
        directory=directory,
        pepper=hub.records.secrets.pepper,
        recorder=hub.records.recorder,
        spread=hub.records.spread,
        api=managed.admin.app,
        metrics=metrics,
        upkeep=hub.upkeep,
    )
    if peering is not None:
        peering.register(metrics, directory)
    forwarded = None if peering is None or peering.links is None else peering.links.forwarded.end_all
    start(StaleWatch(directory, calls.live, end_forwarded=forwarded).run)
    return _Parts(front, managed, peering, show)


def _start_peering(hub: Resources, front: Front) -> Peering | None:
    """Build what a hub has where others serve beside it; None for a file of SQLite."""
    members, identity, limit = hub.records.members, hub.records.joined.identity, hub.shared_limit
    if members is None or limit is None:
        return None
    directory = hub.records.directory
    links = None
    if identity is not None:
        links = Links.start(members, identity, hub.registry, directory, front, limit, hub.upkeep)
    peering = Peering(members, links)
    peering.tell_figures(hub.registry, front)
    return peering


def _start_direct(hub: Resources) -> DirectRelays:
    """Build the relays in direct mode."""
    directory, recorder, trail = hub.records.directory, hub.records.recorder, hub.records.trail
    return DirectRelays(
        keys=lambda: hub.records.secrets.ring.current,
        issuer=hub.config.public_url,
        new_id=new_eid,
        nursery=hub.upkeep,
        enrolled=lambda: directory.current.clusters_by_id.keys(),
        pins=Pins(directory, recorder, trail),
    )


def _start_calls(
    hub: Resources, direct: DirectRelays, metrics: CollectorRegistry
) -> tuple[Calls, TrailWatch]:
    """Build the calls, with their limits and the watch over the trail."""
    config, ring, records = hub.config, hub.records.secrets.ring, hub.records
    directory, start = records.directory, hub.upkeep.start_soon
    calls = Calls(
        config=config,
        directory=directory,
        tokens=AccessTokens(lambda: ring.current.public, issuer=config.public_url, org=config.org),
        registry=hub.registry,
        direct=direct,
        recorder=records.recorder,
        trail=records.trail,
        observe=CallMetrics(metrics).observe,
    )
    metrics.register(MemoryCollector(calls.memory))
    start(HeldUp(calls.memory, calls.live, calls.live.end_for_memory).run)
    directory.on_change(calls.live.reconsider)
    start(calls.live.run)
    start(calls.live.run_timed, lambda: directory.current.bundle.timed)
    start(calls.limits.run, calls.live)
    watch = TrailWatch(
        records.store, directory, records.recorder, calls.live, config.audit.down_grace_s, records.trail.hub,
        records.place.parent if isinstance(records.place, Path) else None,
    )  # fmt: skip
    directory.on_change(watch.follow)
    metrics.register(TrailCollector(watch))
    start(watch.run_grace)
    start(watch.run_disk)
    start(Starts(calls).run)
    return calls, watch


def _start_relays(hub: Resources, calls: Calls) -> RelayEndpoint:
    """Build the endpoint of the relays' tunnels."""
    directory = hub.records.directory
    relays = RelayEndpoint(
        config=hub.config,
        directory=directory,
        registry=hub.registry,
        keys=lambda: hub.records.secrets.ring.current,
        recorder=hub.records.recorder,
        trail=hub.records.trail,
        memory=calls.memory,
        boot=hub.home.boot,
        software=_software(),
        new_id=new_eid,
        shared_limit=hub.shared_limit,
        hub=hub.hub_id or "",
    )
    directory.on_change(relays.end_revoked)
    hub.upkeep.start_soon(relays.run)
    return relays


def _start_front(hub: Resources, direct: DirectRelays, calls: Calls, relays: RelayEndpoint) -> Front:
    """Build the public listener's handler, with the endpoints for tokens and enrolment."""
    config, directory, recorder = hub.config, hub.records.directory, hub.records.recorder
    secrets = hub.records.secrets
    front = Front(
        certificate=hub.home.certificate,
        calls=calls,
        relays=relays,
        dial_auth=DialAuth(directory, hub.registry, config.public_url, secrets.pepper, hub.seen),
        tokens=TokenEndpoint(
            directory=directory,
            keys=lambda: secrets.ring.current,
            pepper=secrets.pepper,
            issuer=config.public_url,
            record=recorder.complete,
            clock=time.time,
            replays=hub.seen,
            limits=config.limits,
            recording=lambda: recorder.healthy,
            cluster_hosts=config.cluster_hosts,
            audit_debt=calls.limits.audit_debt,
            state_of=partial(cluster_state, registry=hub.registry, direct=direct),
        ),
        enrolment=EnrolmentEndpoint(directory, secrets.pepper, config.public_url, recorder, time.time),
        recorder=recorder,
        trail=hub.records.trail,
        clock=time.time,
    )
    hub.upkeep.start_soon(front.run)
    return front


async def _take_over(hub: Resources, managed: Managed) -> trio.CancelScope:
    """Stop the old hub's accepting, if there is one, and read the state that it leaves.

    From then on this hub maintains the data folder. Returns the scope of the tasks that do.
    """
    home, directory, ring = hub.home, hub.records.directory, hub.records.secrets.ring
    if await home.instance.pause_old_hub():
        # The old hub may have rotated the keys while this one prepared.
        ring.reload()
    # After the pause, because the old hub may have added revocations until then.
    left = managed.revocations.left()
    await repeat_revocations(managed.revocations, left, managed.administration, hub.records.recorder)
    write_admin_endpoint = partial(write_endpoint, hub.config, home.data, home.certificate.chain)
    # Started after the pause: these tasks overwrite the folder's files with what this hub has read.
    keeping = trio.CancelScope()
    tasks: list[Callable[[], Awaitable[None]]] = [
        ring.run,
        partial(home.certificate.keep_current, write_admin_endpoint),
        home.certificate.warn_of_expiry,
        partial(note_relays_seen, hub.registry, directory, USE_WRITTEN_EVERY_S),
    ]
    if hub.records.watch is not None:
        tasks.append(hub.records.watch.run_memory)
    hub.upkeep.start_soon(_keep, keeping, *tasks)
    # Read after the pause: the old hub's relays reconnect to this one.
    recent = await directory.read(partial(Store.clusters_seen, since=time.time() - SEEN_RECENTLY_S))
    hub.registry.relay_wait.expect(recent)
    if hub.shared_limit is None:
        await directory.change(Store.close_relays)
    write_admin_endpoint()
    return keeping


def _software() -> str:
    return f"hawse/{VERSION}"


async def _serve(
    hub: Resources,
    signals: AsyncIterator[int],
    parts: _Parts,
    keeping: trio.CancelScope,
) -> None:
    """Accept and handle connections until a signal or a new hub ends that, and then drain."""
    config, front, peering = hub.config, parts.front, parts.peering
    async with trio.open_nursery() as handlers:
        links = None if peering is None else peering.links
        stop = Stop(config.stop, front, signals, peering, None if links is None else links.forwarded)
        listener = None if links is None else links.listener
        acceptor = Acceptor(
            hub.home.instance, front, parts.managed.admin, handlers, stop.leave, listener, parts.show
        )
        replaced = await acceptor.accept_until_stopped(signals, config.public_url)
        if replaced:
            # The successor maintains the folder and the relays' rows in the store.
            keeping.cancel()
        await stop.finish(replaced=replaced)
        handlers.cancel_scope.cancel()


async def _keep(keeping: trio.CancelScope, *tasks: Callable[[], Awaitable[None]]) -> None:
    """Run the tasks that maintain the data folder, until `keeping` is cancelled."""
    with keeping:
        async with trio.open_nursery() as nursery:
            for run in tasks:
                nursery.start_soon(run)
