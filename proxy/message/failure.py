"""Why an exchange failed, whether the request may have been processed, and the exceptions that carry it."""

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
    """An exchange cannot go on; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code.name.lower()}: {failure.reason}")
        self.failure = failure


class InboundBroken(ExchangeBroken):
    """The side that asked is gone (CANCEL), or sent a body that cannot be read (PROTOCOL)."""


class OutboundBroken(ExchangeBroken):
    """The side that answers failed, refused, or sent what is no answer."""
