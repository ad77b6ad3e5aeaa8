"""Builds the console of a hub, and starts its background tasks."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import trio
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from audit.recording.recorder import Recorder
from proxy.hub.console.front import ConsoleFront
from proxy.hub.console.gate import Gate
from proxy.hub.console.metrics import ConsoleCollector
from proxy.hub.console.origin import Origin
from proxy.hub.console.people import People
from proxy.hub.console.sign_in import ConsoleSignIn
from proxy.hub.home.certificate import Certificate
from proxy.hub.home.config import HubConfig
from proxy.hub.membership.spread import Spread
from proxy.hub.store.directory import Directory
from proxy.listener.balancers import Balancers
from proxy.listener.client_address import Admitter
from proxy.listener.unauthenticated import UnauthenticatedLimits
from tunnel.net.loglimit import LogLimit
from tunnel.net.tcp import TCPStream

Handle = Callable[[TCPStream], Awaitable[None]]

_log = logging.getLogger("hawse.hub.console")


def start_console(
    config: HubConfig,
    certificate: Certificate,
    *,
    directory: Directory,
    pepper: bytes,
    recorder: Recorder,
    spread: Spread,
    api: ASGIApp,
    metrics: CollectorRegistry,
    upkeep: trio.Nursery,
) -> Handle | None:
    """Build the console, and return the handler of its connections; None without `console.listen`."""
    if config.console.listen is None:
        return None
    # Its pages and Jinja2 take 80 ms of CPU to load, a tenth of a hub's start.
    from proxy.console.app import console_app

    origin = Origin.of(config.console.public_url)
    people = People(directory, pepper, time.time)
    sign_in = ConsoleSignIn(people, origin, recorder, spread)
    pages = console_app(api, sign_in, config.public_host, time.time)
    gate = Gate(origin, people, pages, api)
    front = ConsoleFront(
        app=gate,
        headers=tuple(gate.headers.items()),
        certificate=certificate if config.console.tls else None,
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
