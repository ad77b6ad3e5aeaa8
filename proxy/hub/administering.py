"""Builds the admin API and the console of a hub, and starts their background tasks."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import attrs
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from audit.mask import Masks
from proxy.hub.admin.administration import Administration
from proxy.hub.admin.api import admin_app
from proxy.hub.admin.data.streamed import Backups
from proxy.hub.admin.front import AdminFront, LiveRelays
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
from proxy.hub.console.front import ConsoleFront
from proxy.hub.console.gate import Gate
from proxy.hub.console.metrics import ConsoleCollector
from proxy.hub.console.origin import Origin
from proxy.hub.console.people import People
from proxy.hub.console.sign_in import ConsoleSignIn
from proxy.hub.front import Front
from proxy.hub.home.trails import open_search
from proxy.hub.resources import Resources
from proxy.listener.balancers import Balancers
from proxy.listener.client_address import Admitter
from proxy.listener.unauthenticated import UnauthenticatedLimits
from proxy.process.version import VERSION
from tunnel.net.loglimit import LogLimit
from tunnel.net.tcp import TCPStream

if TYPE_CHECKING:
    from proxy.hub.peering import Peering

Handle = Callable[[TCPStream], Awaitable[None]]

_log = logging.getLogger("hawse.hub.console")


@attrs.frozen
class Managed:
    """What serves operators and browsers."""

    admin: AdminFront
    administration: Administration
    show: Handle | None
    """Serves a connection of the console; None without one."""


def start_administration(
    hub: Resources,
    front: Front,
    calls: Calls,
    trail_watch: TrailWatch,
    live_relays: LiveRelays,
    peering: Peering | None,
    metrics: CollectorRegistry,
) -> Managed:
    """Build both over the hub's other parts."""
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
    recorder, spread = hub.records.recorder, hub.records.spread
    streams, reads = EventStreams(lambda: front.deadlines.ending), MergedReads(recorder.complete, time.time)
    start(reads.run)
    app = admin_app(
        administration, recorder, metrics, time.time, home.revocations, spread, reads=reads, streams=streams
    )  # fmt: skip
    admin = AdminFront(app, home.certificate)
    directory.on_change(partial(admin.demote_revoked, directory))
    show = _start_console(hub, app, metrics)
    return Managed(admin, administration, show)


def _start_console(hub: Resources, api: ASGIApp, metrics: CollectorRegistry) -> Handle | None:
    """Build the console, and return the handler of its connections; None without `console.listen`."""
    config, home, records, upkeep = hub.config, hub.home, hub.records, hub.upkeep
    if config.console.listen is None:
        return None
    # Its pages and Jinja2 take 80 ms of CPU to load, a tenth of a hub's start.
    from proxy.console.app import console_app

    directory = records.directory
    origin = Origin.of(config.console.public_url)
    people = People(directory, records.secrets.pepper, time.time)
    sign_in = ConsoleSignIn(people, origin, records.recorder, records.spread)
    pages = console_app(api, sign_in, config.public_host, time.time)
    gate = Gate(origin, people, pages, api)
    front = ConsoleFront(
        app=gate,
        headers=tuple(gate.headers.items()),
        certificate=home.certificate if config.console.tls else None,
        admitter=Admitter(
            UnauthenticatedLimits(), LogLimit(_log), Balancers.of(config.console.listen_proxy_from)
        ),
    )

    def end_revoked() -> None:
        tokens = {token.id for token in directory.current.admin_tokens_by_hash.values()}
        front.connections.end_all_but(tokens | people.living())

    directory.on_change(end_revoked)
    metrics.register(ConsoleCollector(front, sign_in))
    upkeep.start_soon(people.run)
    upkeep.start_soon(front.run)
    _log.info("the console is at %s (listens on %s)", config.console.public_url, config.console.listen)
    return front.handle_client
