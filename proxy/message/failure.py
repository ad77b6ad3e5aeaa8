"""Failures of an exchange, and the exceptions that carry them."""

from __future__ import annotations

import attrs

from tunnel.protocol.errors import Processed, StreamCode

__all__ = [
    "GONE",
    "ExchangeBroken",
    "Failure",
    "InboundBroken",
    "OutboundBroken",
    "Processed",
    "StreamCode",
]


@attrs.frozen
class Failure:
    """Why an exchange failed, and whether the API server may have seen the request."""

    code: StreamCode
    processed: Processed
    reason: str


GONE = Failure(StreamCode.CANCEL, Processed.MAYBE, "the client is gone")


class ExchangeBroken(Exception):
    """An exchange cannot continue; `failure` has the reason."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code.name.lower()}: {failure.reason}")
        self.failure = failure


class InboundBroken(ExchangeBroken):
    """The client is gone (CANCEL), or sent a malformed body (PROTOCOL)."""


class OutboundBroken(ExchangeBroken):
    """The answering side failed, refused the request, or sent an invalid answer."""
