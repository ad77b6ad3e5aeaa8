"""HTTP/1.1 over any trio stream: the server's role, the client's role, the strict checks of both."""

from __future__ import annotations

from proxy.exchange.client import ClientConnection
from proxy.exchange.server import ServerConnection
from proxy.exchange.wire import RawStream
from proxy.message.strict import BadRequest

__all__ = ["BadRequest", "ClientConnection", "RawStream", "ServerConnection"]
