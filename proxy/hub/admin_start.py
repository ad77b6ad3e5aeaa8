"""Builds the admin API of a hub, and starts its background tasks."""

from __future__ import annotations

import time
from functools import partial

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

from audit.mask import Masks
from proxy.hub.admin.administration import Administration
from proxy.hub.admin.api import admin_app
from proxy.hub.admin.front import LiveRelays
from proxy.hub.admin.hub_facts import RunningHub, watched_of
from proxy.hub.admin.live_calls import LiveSessions
from proxy.hub.admin.overview.health import OwnFacts
from proxy.hub.admin.simulation.process import run_in_process
from proxy.hub.admin.simulation.simulations import Simulations
from proxy.hub.admin.streams.sse import EventStreams
from proxy.hub.admin.trail.reads import MergedReads
from proxy.hub.admin.trail.service import TrailService
from proxy.hub.calls.calls import Calls
from proxy.hub.calls.trail_watch import TrailWatch
from proxy.hub.front import Front
from proxy.hub.home.trails import open_search
from proxy.hub.opened import OpenedHub
from proxy.hub.peering import Peering
from proxy.process.version import VERSION


def start_admin(
    hub: OpenedHub,
    calls: Calls,
    watch: TrailWatch,
    relays: LiveRelays,
    metrics: CollectorRegistry,
    front: Front,
    peering: Peering | None,
) -> tuple[Administration, Starlette]:
    """Build the actions on a hub, and the application that serves them."""
    config, home, records, hub_id = hub.config, hub.home, hub.records, hub.hub_id or ""
    start = hub.upkeep.start_soon
    simulations = Simulations(partial(run_in_process, home.data.path), time.time, hub_id)
    start(simulations.run)
    trail = TrailService.of(partial(open_search, records.place), Masks(config.audit.mask))
    start(trail.run)
    sessions = LiveSessions(calls.live, home.instances, home.boot, hub_id)
    facts = OwnFacts(RunningHub(calls, relays, records.directory, watch, hub_id), config.tls.certificate)
    administration = Administration.of(
        directory=records.directory,
        ring=records.secrets.ring,
        pepper=records.secrets.pepper,
        local_token=hub.local_token,
        public_url=config.public_url,
        hub_ca=lambda: home.certificate.ca_pem,
        version=VERSION,
        operations=relays,
        live_sessions=sessions,
        simulations=simulations,
        relays_per_cluster=config.limits.relays_per_cluster,
        trail=trail,
        denials=trail.denials,
        hubs=None if peering is None else peering.members,
        other_hubs=None if peering is None else peering.calls_elsewhere(sessions),
        facts=facts,
        facts_elsewhere=None if peering is None else peering.facts_elsewhere(facts),
        watched=watched_of(calls, hub.registry, records.store, records.members),
        console_url=config.console.public_url,
    )
    reads = MergedReads(records.recorder.complete, time.time)
    start(reads.run)
    app = admin_app(
        administration,
        records.recorder,
        metrics,
        time.time,
        home.revocations,
        records.spread,
        reads=reads,
        streams=EventStreams(lambda: front.deadlines.ending),
    )
    return administration, app
