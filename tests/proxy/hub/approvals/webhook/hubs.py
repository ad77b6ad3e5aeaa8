"""Hubs that send webhooks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from proxy.hub.approvals.requests.service import Requests, open_requests
from proxy.hub.approvals.webhook.metrics import WebhookMetrics
from proxy.hub.approvals.webhook.sender import Webhooks
from proxy.hub.home.config import HubConfig
from proxy.hub.home.sections.console import ConsoleConfig
from proxy.hub.home.sections.webhook import WebhookConfig
from proxy.hub.store.engines.engine import Location
from proxy.hub.store.entities import Snapshot
from proxy.process.config import Address

CONSOLE = ConsoleConfig(Address("127.0.0.1", 8446), "https://console.example")


@asynccontextmanager
async def hub(
    location: Location, snapshot: Snapshot, *webhooks: WebhookConfig, boot: str = "boot-a"
) -> AsyncIterator[Requests]:
    """The requests of a hub that sends webhooks."""
    config = HubConfig(console=CONSOLE, webhook=webhooks)
    names = [each.name for each in webhooks]
    async with open_requests(
        location, org="acme", boot=boot, snapshot=lambda: snapshot, record=list[object]().append,
        runs_here=lambda _: True, webhooks=names,
    ) as requests, trio.open_nursery() as nursery:  # fmt: skip
        nursery.start_soon(Webhooks.of(config, requests, lambda: snapshot, WebhookMetrics(names)).run)
        yield requests
        nursery.cancel_scope.cancel()
