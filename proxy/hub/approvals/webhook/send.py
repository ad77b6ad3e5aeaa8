"""Sends one message to a webhook, signed as in Standard Webhooks: HTTPS, no redirects, a deadline.

A receiver checks `webhook-signature`: HMAC-SHA256 of the id, the timestamp and the body. A message may come
twice, and then has the same `webhook-id`.
"""

from __future__ import annotations

import base64
import hmac
import ssl
import time
from typing import Final

import attrs
import trio

from proxy.exchange.client import ClientConnection
from proxy.hub.home.sections.webhook import WebhookConfig, read_secret
from proxy.hub.identity.guarded_dial import HTTPS_PORT, dial_checked
from proxy.message.failure import OutboundBroken
from proxy.message.head import HeadError, RequestHead
from proxy.process.stated import content
from tunnel.net.connect import HandshakeFailed, client_context

# From the name's resolution to the answer's head.
SEND_S: Final = 5.0


class SendFailedError(Exception):
    """The receiver has not confirmed a message; one line, with the host alone of its URL."""


@attrs.frozen
class Receiver:
    """A webhook's receiver."""

    webhook: WebhookConfig
    _context: ssl.SSLContext

    @classmethod
    def of(cls, webhook: WebhookConfig) -> Receiver:
        """Return the receiver of a checked configuration; raises OSError and ValueError for its CA's file."""
        file = webhook.ca_file
        return cls(webhook, client_context(None if file is None else content(file)))

    async def send(self, message_id: str, body: bytes) -> None:
        """Send a message within SEND_S; raises SendFailedError.

        When cancelled, the connection is closed, and the receiver may have the message.
        """
        headers = [*_headers(self.webhook, len(body)), *self._signature(message_id, int(time.time()), body)]
        with trio.move_on_after(SEND_S):
            await self._post(RequestHead.of(b"POST", _path(self.webhook), tuple(headers)), body)
            return
        raise SendFailedError(f"{self.webhook.host} has not answered within {SEND_S:.0f} s")

    def _signature(self, message_id: str, now: int, body: bytes) -> list[tuple[bytes, bytes]]:
        file = self.webhook.secret_file
        stated = [(b"webhook-id", message_id.encode()), (b"webhook-timestamp", b"%d" % now)]
        if file is None:
            return stated
        try:
            secret = read_secret(file)
        except OSError as error:
            raise SendFailedError(f"secret_file {file} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise SendFailedError(f"secret_file {error}") from error
        return [*stated, (b"webhook-signature", signature(secret, message_id, now, body))]

    async def _post(self, head: RequestHead, body: bytes) -> None:
        host, port = self.webhook.host, self.webhook.parts.port or HTTPS_PORT
        private, allow_by = self.webhook.allow_private_address, "set allow_private_address = true"
        try:
            stream = await dial_checked(host, port, self._context, private=private, allow_by=allow_by)
        except (OSError, HandshakeFailed, trio.BrokenResourceError, ValueError) as error:
            raise SendFailedError(f"cannot reach {host}: {' '.join(str(error).split())[:160]}") from error
        connection = ClientConnection(stream)
        try:
            await connection.send_request(head)
            await stream.send_all(connection.http.send_body(body, end=True))
            status = (await connection.receive_head()).status
        except (OutboundBroken, HeadError, trio.BrokenResourceError) as error:
            raise SendFailedError(f"{host} did not answer: {error}") from error
        finally:
            await connection.aclose()
        if 300 <= status < 400:
            raise SendFailedError(f"{host} redirects, which is not followed")
        if not 200 <= status < 300:
            raise SendFailedError(f"{host} answered {status}")


def signature(secret: bytes, message_id: str, now: int, body: bytes) -> bytes:
    """Return the value of `webhook-signature`."""
    signed = b"%b.%d.%b" % (message_id.encode(), now, body)
    return b"v1," + base64.b64encode(hmac.digest(secret, signed, "sha256"))


def _headers(webhook: WebhookConfig, length: int) -> list[tuple[bytes, bytes]]:
    return [
        (b"host", webhook.parts.netloc.encode("ascii")),
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % length),
        (b"user-agent", b"hawse"),
        (b"connection", b"close"),
    ]


def _path(webhook: WebhookConfig) -> bytes:
    parts = webhook.parts
    path = parts.path or "/"
    return (f"{path}?{parts.query}" if parts.query else path).encode("ascii")
