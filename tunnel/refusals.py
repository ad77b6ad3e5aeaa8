"""Why a session is over, was never opened, or cannot do what it was asked; and how its peer learns of
that."""

from __future__ import annotations

import trio

from tunnel.protocol.errors import CloseCode, RemoteProtocolError

__all__ = ["FAREWELL_S", "Detached", "Draining", "Rejected", "SessionClosed", "TooManyStreams", "farewell_of"]

# For the last GOAWAY, sent or received.
FAREWELL_S = 1.0


class SessionClosed(trio.BrokenResourceError):
    """The session is over. What was asked was not done."""

    def __init__(self, code: int | None, reason: str) -> None:
        super().__init__(reason if code is None else f"{reason} ({code})")
        self.code = code
        self.reason = reason


class Rejected(Exception):
    """The listener does not want this dialer; raised by `answer_hello`, and at the dialer by open_session."""

    def __init__(self, close_code: int, reason: str, retry_after_ms: int = 0) -> None:
        super().__init__(f"{reason} ({close_code})")
        self.close_code = close_code
        self.reason = reason
        self.retry_after_ms = retry_after_ms


class Draining(trio.BrokenResourceError):
    """The session opens no new streams; another session should."""


class TooManyStreams(trio.BrokenResourceError):
    """The peer takes no more streams at once."""


class Detached(trio.BrokenResourceError):
    """The session's transport is lost, and was not replaced yet; nothing was sent."""


def farewell_of(exc: BaseException) -> tuple[int, str]:
    """Return the close code and the reason of a session that ends for `exc`."""
    match exc:
        case RemoteProtocolError():
            return exc.close_code, str(exc)
        case Rejected():
            return exc.close_code, exc.reason
        case SessionClosed(code=int() as code):
            return code, exc.reason
        case _:
            return CloseCode.NORMAL, "closed here"
