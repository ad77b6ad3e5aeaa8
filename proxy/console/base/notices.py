"""The sentence that a page shows about the change before it, carried in the redirect's query.

It is signed with the session's secret, so that no link can put a text onto the page. The hub stores nothing.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode

# Sentences have some hundred characters; the names of ten silent hubs fit too.
TEXT_CHARACTERS_MAX = 1000
_TAG_BYTES = 16


def signed(text: str, secret: str) -> str:
    """Return a notice as a value of the query."""
    body = text[:TEXT_CHARACTERS_MAX].encode("utf-8", "backslashreplace")
    return urlsafe_b64encode(_tag(body, secret) + body).decode("ascii").rstrip("=")


def opened(value: str, secret: str) -> str:
    """Return the text of a notice, or nothing if it is not one of this session."""
    try:
        raw = urlsafe_b64decode(value.encode("ascii") + b"=" * (-len(value) % 4))
    except ValueError:
        return ""
    tag, body = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
    return body.decode("utf-8") if hmac.compare_digest(tag, _tag(body, secret)) else ""


def _tag(body: bytes, secret: str) -> bytes:
    return hmac.digest(secret.encode("utf-8"), b"notice\0" + body, "sha256")[:_TAG_BYTES]
