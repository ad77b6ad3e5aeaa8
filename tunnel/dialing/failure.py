"""Why a dial has failed: one line for the log, and what the dialer has to know of it.

A failure is read by an operator at the other end of the world. So its text says what came, and if it is
known, what to do. It never holds a credential, nor more of an answer than a log may show.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import SplitResult, urlsplit

from tunnel.net.connect import HandshakeFailed
from tunnel.protocol.errors import CloseCode
from tunnel.refusals import Rejected
from tunnel.websocket.upgrade import AT_HEADER, HUB_TIME_HEADER, WebSocketRefused

__all__ = ["WARNING_CHARACTERS_MAX", "DialFailed", "explain_answer", "explain_rejection", "tls_advice"]

# Of what the hub says beside a refusal; its own sentences are shorter.
WARNING_CHARACTERS_MAX: Final = 200

# What a balancer says while the hub behind it restarts. The hub's own 503 comes with a Retry-After.
_HUB_IS_AWAY: Final = frozenset({502, 503, 504})

_WARNING: Final = re.compile(r'[0-9]{3} \S{1,255} "([\x20-\x7e]*)"')
# X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED.
_OUT_OF_TIME: Final = frozenset({9, 10})
# Those of a chain that ends in no certificate we trust: X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT,
# DEPTH_ZERO_SELF_SIGNED_CERT, SELF_SIGNED_CERT_IN_CHAIN, UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
# UNABLE_TO_VERIFY_LEAF_SIGNATURE.
_NO_ISSUER: Final = frozenset({2, 18, 19, 20, 21})


class DialFailed(Exception):
    """There is no tunnel this time; the text is one line for the log."""

    def __init__(
        self,
        reason: str,
        *,
        refused: bool = False,
        retry_after_s: float = 0.0,
        busy: bool = False,
        forgotten: bool = False,
        hub_time: str = "",
        hub: str = "",
    ) -> None:
        super().__init__(reason)
        self.refused = refused or retry_after_s > 0
        """The hub has answered, and wants no session now."""
        self.busy = busy
        """It is refused for a reason of this hub's, and another hub of the same name may want a session."""
        self.hub = hub
        """The id of the hub that has answered, if its answer says so."""
        self.retry_after_s = retry_after_s
        self.hub_time = hub_time
        """A token dated by our clock was refused for that, and one dated by this is to be tried at once."""
        self.forgotten = forgotten
        """The hub has answered, and knows nothing of the session that was to be resumed."""


def explain_answer(
    refused: WebSocketRefused, now: float, seconds_of: Callable[[str], int | None]
) -> DialFailed:
    """Explain an answer to the upgrade that is no 101.

    `now` is the wall clock, and `seconds_of` is as in DialerConfig.
    """
    headers = {name.lower(): value.decode("latin-1") for name, value in refused.headers}
    # Its Date dates the Retry-After only, never a token: any server can name a time to come.
    answered_at = _http_date(headers.get(b"date", "")) or now
    retry_after_s = _retry_after_s(headers.get(b"retry-after", ""), answered_at)
    why = _warning(headers.get(b"warning", ""))
    reason = f"{refused}{why}"
    hub_time = headers.get(HUB_TIME_HEADER, "")
    told_s = seconds_of(hub_time) if refused.status == 401 else None
    if told_s is not None:
        return DialFailed(
            f"{reason}; {_clock_advice(told_s - now)}",
            refused=True,
            retry_after_s=retry_after_s,
            hub_time=hub_time,
        )
    # A hub that says why it refuses a relay says what to do, too.
    knows = bool(why) and refused.status in (401, 503)
    advice = "" if knows else _advice(refused.status, headers.get(b"location", ""))
    by_hub = refused.status is not None and refused.status not in _HUB_IS_AWAY
    return DialFailed(
        f"{reason}{advice}",
        refused=by_hub,
        retry_after_s=retry_after_s,
        busy=refused.status in _HUB_IS_AWAY,
        hub=_hub_in(refused.headers),
    )


def explain_rejection(rejected: Rejected, headers: Iterable[tuple[bytes, bytes]]) -> DialFailed:
    """Explain a GOAWAY in place of the WELCOME, behind a 101 with these headers."""
    forgotten = rejected.close_code == CloseCode.RESUME_UNKNOWN
    return DialFailed(
        f"the hub turns this relay away: {rejected}",
        refused=not forgotten,
        retry_after_s=rejected.retry_after_ms / 1000,
        busy=rejected.close_code in (CloseCode.DRAINING, CloseCode.SLOW_DOWN),
        forgotten=forgotten,
        hub=_hub_in(headers),
    )


def _hub_in(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id of the hub that an answer is from, as it says."""
    return next((value.decode("latin-1") for name, value in headers if name.lower() == AT_HEADER), "")


def _advice(status: int | None, location: str) -> str:
    match status:
        case 301 | 302 | 303 | 307 | 308:
            return f", it points to {_origin(location)}; the hub's URL must name the hub itself"
        case 401:
            return "; the hub, or a proxy on the way, does not accept this relay and does not say why"
        case 403:
            return "; this relay is not allowed to connect"
        case 200 | 404 | 426:
            return "; there is no hub at this URL"
        case 407:
            return "; a proxy on the way demands a user and a password, and HTTPS_PROXY does not name it"
        case 429 | 503:
            return "; the hub has no room now"
        case 502 | 504:
            return "; a proxy in front of the hub does not reach it"
        case _:
            return ""


def _clock_advice(offset_s: float) -> str:
    side = "behind" if offset_s > 0 else "ahead of"
    return (
        f"our clock is {abs(offset_s):.0f} s {side} the hub's: set the one that is wrong; "
        "until then each dial is repeated at once by the time that the hub tells"
    )


def _warning(header: str) -> str:
    """Return what the hub says beside its refusal (RFC 7234 5.5), as far as a log may show it."""
    match = _WARNING.fullmatch(header)
    if match is None:
        return ""
    text = re.sub(r"\\(.)", r"\1", match[1])
    return f" ({text[:WARNING_CHARACTERS_MAX]})"


def _origin(location: str) -> str:
    """Return what a log may show of a Location: no user, no path, no query."""
    try:
        parts: SplitResult = urlsplit(location)
        host = parts.hostname
    except ValueError:
        return "no usable URL"
    return f"{parts.scheme}://{host}" if parts.scheme and host else "a path of its own"


def tls_advice(failed: HandshakeFailed) -> str:
    """Return what an operator can do about a failed handshake; "" if that is not known."""
    cause = failed.__cause__
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return ""
    if "ostname" in cause.verify_message or "IP address" in cause.verify_message:
        return "; the URL must name the host as the certificate does"
    if cause.verify_code in _OUT_OF_TIME:
        return "; the certificate must be renewed, unless this machine's clock is wrong"
    signed = f"; it is signed by {failed.issuer or 'an unknown CA'}"
    return f"{signed}, and hub.ca does not hold that CA" if cause.verify_code in _NO_ISSUER else signed


def _http_date(text: str) -> float | None:
    try:
        parsed = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        # The latter of a number that no date has room for.
        return None
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()


def _retry_after_s(text: str, now: float) -> float:
    """RFC 9110 10.2.3: a number of seconds, or a date."""
    if text.isascii() and text.isdigit():
        # More digits than any patience has.
        return float(text[:9])
    date = _http_date(text)
    return max(date - now, 0.0) if date is not None else 0.0
