"""Sends the messages of the outbox to the webhooks.

Each webhook has a task of its own, so one that hangs delays its own messages alone. A message is claimed by
one hub, sent, and then deleted. A hub that dies between these two leaves its claim, and another hub sends the
message again once LEASE_S are over.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NoReturn, Protocol

import attrs
import trio

from proxy.hub.approvals.request import Request
from proxy.hub.approvals.requests.outbox import Delivery
from proxy.hub.approvals.webhook.message import Message, json_body, slack_body
from proxy.hub.approvals.webhook.metrics import Outcome, WebhookMetrics
from proxy.hub.approvals.webhook.send import SEND_S, Receiver, SendFailedError
from proxy.hub.home.config import HubConfig
from proxy.hub.home.sections.webhook import WebhookConfig
from proxy.hub.store.engines.errors import StoreUnavailableError
from proxy.hub.store.entities import Snapshot
from tunnel.net.loglimit import LogLimit

LEASE_S: Final = SEND_S + 25.0
"""A claim that was not settled for so long is due again. Settling it takes some milliseconds."""
ATTEMPTS_MAX: Final = 8
RETRY_S: Final = 5.0
"""After the first failure; doubled after each further one. The last attempt is 10 minutes after the first,
while most requests still wait."""
PAUSE_S: Final = 5.0
"""After a failure, the webhook's other messages wait for so long. A name whose resolution hangs would
otherwise take ever more threads."""
POLL_S: Final = 5.0
"""How often the outbox is read for messages that are due again. New ones are sent at once."""

_log = logging.getLogger("hawse.hub.webhook")


class Outbox(Protocol):
    """The messages to be sent, of all hubs; the methods raise StoreUnavailableError."""

    async def claim(self, webhook: str, lease_s: float) -> Delivery | None:
        """Claim a message of this webhook that is due, if there is one."""

    async def delivered(self, delivery: Delivery) -> None:
        """Delete a message."""

    async def retry(self, delivery: Delivery, after_s: float) -> None:
        """Make a claimed message due again after this time."""

    def on_change(self, listener: Callable[[frozenset[str]], None]) -> None:
        """Call `listener` after each change of a request, of this hub or another."""


@attrs.define(eq=False)
class Sender:
    """Sends the messages of one webhook."""

    webhook: WebhookConfig
    send: Callable[[str, bytes], Awaitable[None]]
    """Sends a message with this id; raises SendFailedError."""
    outbox: Outbox
    message_of: Callable[[str, Request], Message]
    metrics: WebhookMetrics
    _woken: trio.Event = attrs.field(init=False, factory=trio.Event)
    _lines: LogLimit = attrs.field(init=False, factory=lambda: LogLimit(_log))

    @property
    def name(self) -> str:
        """The webhook's name."""
        return self.webhook.name

    def wake(self, _: frozenset[str] = frozenset()) -> None:
        """Look for messages now."""
        self._woken.set()

    async def run(self) -> NoReturn:
        """Send messages as they become due; never returns."""
        while True:
            self._woken = trio.Event()
            try:
                delivery = await self.outbox.claim(self.name, LEASE_S)
                if delivery is not None:
                    await self._deliver(delivery)
                    continue
            except StoreUnavailableError:
                # The store's own watch reports it. What was claimed is due again later.
                pass
            with trio.move_on_after(POLL_S):
                await self._woken.wait()

    async def _deliver(self, delivery: Delivery) -> None:
        try:
            if delivery.attempts > ATTEMPTS_MAX:
                raise SendFailedError("the hubs that tried ended before they had an answer")
            message = self.message_of(delivery.event, delivery.request)
            body = slack_body(message) if self.webhook.format == "slack" else json_body(message)
            await self.send(delivery.id, body)
        except SendFailedError as failure:
            await self._failed(delivery, str(failure))
        else:
            self.metrics.count(self.name, Outcome.DELIVERED)
            await self.outbox.delivered(delivery)

    async def _failed(self, delivery: Delivery, failure: str) -> None:
        attempts = delivery.attempts
        if attempts >= ATTEMPTS_MAX:
            self.metrics.count(self.name, Outcome.DROPPED)
            _log.error(
                "webhook %s: gave up after %d attempts: %s. It was not sent: request %s (%s)",
                self.name, ATTEMPTS_MAX, failure, delivery.request.id, delivery.event,
            )  # fmt: skip
            await self.outbox.delivered(delivery)
        else:
            after_s = RETRY_S * 2 ** (attempts - 1)
            self.metrics.count(self.name, Outcome.FAILED)
            line = f"webhook {self.name}: attempt {attempts} of {ATTEMPTS_MAX} failed: {failure}"
            self._lines.warning(f"{line}; the next is in {after_s:.0f} s", trio.current_time())
            await self.outbox.retry(delivery, after_s)
        await trio.sleep(PAUSE_S)


@attrs.define(eq=False)
class Webhooks:
    """The webhooks of a hub."""

    senders: Sequence[Sender]

    @classmethod
    def of(
        cls, config: HubConfig, outbox: Outbox, snapshot: Callable[[], Snapshot], metrics: WebhookMetrics
    ) -> Webhooks:
        """Return the webhooks of a checked configuration; raises OSError and ValueError for a CA's file."""
        console = config.console.public_url if config.console.listen is not None else ""

        def message_of(event: str, request: Request) -> Message:
            now, new = snapshot(), request.new
            agent, cluster = now.agents_by_id.get(new.agent_id), now.clusters_by_id.get(new.cluster_id)
            return Message(
                event,
                request,
                new.agent_id if agent is None else agent.name,
                new.cluster_id if cluster is None else cluster.name,
                console and f"{console}/requests/{request.id}",
            )

        senders = [
            Sender(each, Receiver.of(each).send, outbox, message_of, metrics) for each in config.webhook
        ]
        return cls(senders)

    async def run(self) -> None:
        """Send messages until cancelled; returns at once without webhooks.

        If it is cancelled while it sends a message, another hub sends that message again.
        """
        async with trio.open_nursery() as nursery:
            for sender in self.senders:
                sender.outbox.on_change(sender.wake)
                nursery.start_soon(sender.run)
