"""Builds the held calls and the webhooks of a hub, and starts their tasks."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from proxy.hub.approvals.held.held_calls import HeldCalls
from proxy.hub.approvals.held.parts import Parts
from proxy.hub.approvals.held.reconsider import Reconsider
from proxy.hub.approvals.plan.body import BodyBudget
from proxy.hub.approvals.preview.previewer import Previewer
from proxy.hub.approvals.webhook.metrics import WebhookMetrics
from proxy.hub.approvals.webhook.sender import Webhooks
from proxy.hub.calls.calls import Calls
from proxy.hub.resources import Resources


def start_approvals(hub: Resources, calls: Calls) -> None:
    """Hold the calls that a rule asks about. The public listener does not accept yet."""
    requests, directory = hub.requests, hub.records.directory
    held = HeldCalls(Parts(calls, requests, Previewer(calls), BodyBudget.of(calls.memory), hub.upkeep))
    calls.asked = held
    requests.on_change(held.on_change)
    again = Reconsider(requests, lambda: directory.current)
    directory.on_change(again.on_change)
    hub.upkeep.start_soon(again.run)


def start_webhooks(hub: Resources, metrics: CollectorRegistry) -> None:
    """Send messages about requests for approval, if a webhook is configured."""
    directory, counts = hub.records.directory, WebhookMetrics(each.name for each in hub.config.webhook)
    metrics.register(counts)
    webhooks = Webhooks.of(hub.config, hub.requests, lambda: directory.current, counts)
    hub.upkeep.start_soon(webhooks.run)
