"""HTTP/1.1 over any trio stream: the server's role, the client's role, the strict checks of both."""

from __future__ import annotations

from proxy.client import ClientConnection
from proxy.message.strict import BadRequest
from proxy.server import ServerConnection
from proxy.wire import RawStream

__all__ = ["BadRequest", "ClientConnection", "RawStream", "ServerConnection"]
