"""Builds the admin API of a hub, and starts its background tasks."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import attrs
from prometheus_client import CollectorRegistry

from audit.mask import Masks
from proxy.hub.admin.administration import Administration
from proxy.hub.admin.api import admin_app
from proxy.hub.admin.data.streamed import Backups
from proxy.hub.admin.front import AdminFront, LiveRelays
from proxy.hub.admin.hub_facts import RunningHub, watched_of
from proxy.hub.admin.live_calls import LiveSessions
from proxy.hub.admin.overview.health import OwnFacts
from proxy.hub.admin.revocations import Revocations
from proxy.hub.admin.simulation.process import run_in_process
from proxy.hub.admin.simulation.simulations import Simulations
from proxy.hub.admin.streams.sse import EventStreams
from proxy.hub.admin.trail.reads import MergedReads
from proxy.hub.admin.trail.service import TrailService
from proxy.hub.calls.calls import Calls
from proxy.hub.front import Front
from proxy.hub.health.trail_watch import TrailWatch
from proxy.hub.home.trails import open_search
from proxy.hub.resources import Resources
from proxy.process.version import VERSION

if TYPE_CHECKING:
    from proxy.hub.peering import Peering


@attrs.frozen
class Managed:
    """What serves operators."""

    admin: AdminFront
    administration: Administration
    revocations: Revocations


def start_administration(
    hub: Resources,
    front: Front,
    calls: Calls,
    trail_watch: TrailWatch,
    live_relays: LiveRelays,
    peering: Peering | None,
    metrics: CollectorRegistry,
) -> Managed:
    """Build it over the hub's other parts."""
    home, directory, start = hub.home, hub.records.directory, hub.upkeep.start_soon
    simulations = Simulations(partial(run_in_process, home.data.path), time.time, hub.hub_id or "")
    start(simulations.run)
    trail = TrailService.of(partial(open_search, hub.records.place), Masks(hub.config.audit.mask))
    start(trail.run)
    sessions = LiveSessions(calls.live, home.instances, home.boot, hub.hub_id or "")
    running = RunningHub(calls, live_relays, directory, trail_watch, hub.hub_id or "")
    facts = OwnFacts(running, hub.config.tls.certificate)
    administration = Administration.of(
        directory=directory,
        ring=hub.records.secrets.ring,
        pepper=hub.records.secrets.pepper,
        local_token=hub.local_token,
        public_url=hub.config.public_url,
        hub_ca=lambda: home.certificate.ca_pem,
        version=VERSION,
        operations=live_relays,
        live_sessions=sessions,
        simulations=simulations,
        backups=Backups(home.data.path),
        requests=hub.requests,
        limits=hub.config.limits,
        trail=trail,
        denials=trail.denials,
        hubs=None if peering is None else peering.members,
        other_hubs=None if peering is None else peering.calls_elsewhere(sessions),
        facts=facts,
        facts_elsewhere=None if peering is None else peering.facts_elsewhere(facts),
        watched=watched_of(calls, hub.registry, hub.records.store, hub.records.members),
        console_url=hub.config.console.public_url,
    )
    revocations = Revocations(home.reserve)
    recorder, spread = hub.records.recorder, hub.records.spread
    streams, reads = EventStreams(lambda: front.deadlines.ending), MergedReads(recorder.complete, time.time)
    start(reads.run)
    app = admin_app(
        administration, recorder, metrics, time.time, revocations, spread, reads=reads, streams=streams
    )  # fmt: skip
    admin = AdminFront(app, home.certificate)
    directory.on_change(partial(admin.demote_revoked, directory))
    return Managed(admin, administration, revocations)
