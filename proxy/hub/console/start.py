"""Builds the console of a hub, and starts its background tasks."""

from __future__ import annotations

import logging
import time

import trio
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from proxy.console.app import console_app
from proxy.hub.console.front import ConsoleFront
from proxy.hub.console.gate import Gate
from proxy.hub.console.metrics import ConsoleCollector
from proxy.hub.console.origin import Origin
from proxy.hub.console.people import People
from proxy.hub.console.sign_in import ConsoleSignIn, Recorder
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import HubConfig
from proxy.hub.membership.spread import Spread
from proxy.listener.balancers import Balancers
from proxy.listener.client_address import Admitter
from proxy.listener.unauthenticated import UnauthenticatedLimits
from tunnel.net.loglimit import LogLimit

_log = logging.getLogger("hawse.hub.console")


def start_console(
    config: HubConfig,
    *,
    certificate: Certificate,
    api: ASGIApp,
    pepper: bytes,
    spread: Spread,
    recorder: Recorder,
    metrics: CollectorRegistry,
    upkeep: trio.Nursery,
    csp_report: str = "",
) -> ConsoleFront | None:
    """Build it; None without `console.listen`. `csp_report` is for tests (proxy.hub.console.origin)."""
    if config.console.listen is None:
        return None
    directory = spread.directory
    origin = Origin.of(config.console.public_url)
    people = People(directory, pepper, time.time)
    sign_in = ConsoleSignIn(people, origin, recorder, spread, api)
    pages = console_app(api, sign_in, config.public_host, time.time)
    balancers = Balancers.of(config.console.listen_proxy_from)
    gate = Gate(origin, people, pages, api, csp_report)
    front = ConsoleFront(
        app=gate,
        headers=tuple(gate.headers.items()),
        certificate=certificate if config.console.tls else None,
        admitter=Admitter(UnauthenticatedLimits(), LogLimit(_log), balancers),
    )

    def end_revoked() -> None:
        tokens = {token.id for token in directory.current.admin_tokens_by_hash.values()}
        front.connections.end_all_but(tokens | people.living())

    directory.on_change(end_revoked)
    metrics.register(ConsoleCollector(front, sign_in))
    upkeep.start_soon(people.run)
    upkeep.start_soon(front.run)
    return front
