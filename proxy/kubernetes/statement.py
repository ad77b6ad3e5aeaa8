"""What a relay states of itself to its hub: which cluster it is in, and whether its API server answers.

It is one line of text, the same wherever it travels (tunnel/PROTOCOL.md, "What Hawse carries"): words
`key=value` with a space between two. Words of later versions are ignored.
"""

from __future__ import annotations

import re
from typing import TypeGuard

import attrs

# Where a relay in direct mode states it, to its hub alone. No path of the Kubernetes API begins so.
STATEMENT_TARGET = b"/.hawse/statement"

# A text in HELLO. Both words take 55 bytes; the rest is left to later versions.
STATEMENT_BYTES_MAX = 256

# Kubernetes makes UUIDs, and calls them opaque. It ends in logs, events and lists.
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
_API = {"up": True, "down": False}


class StatementError(ValueError):
    """A statement that no relay makes."""


def is_uid(value: object) -> TypeGuard[str]:
    """Whether a value can be the UID of a Kubernetes object."""
    return isinstance(value, str) and _UID.fullmatch(value) is not None


@attrs.frozen
class Statement:
    """What a relay states. A relay of an older version states nothing."""

    cluster_uid: str = ""
    """The UID of the namespace `kube-system`; empty where the relay does not know it."""
    api_server: bool | None = None
    """Whether the API server answered the last probe; None where the relay does not say."""

    def __str__(self) -> str:
        words = [f"cluster={self.cluster_uid}"] if self.cluster_uid else []
        if self.api_server is not None:
            words.append("api=up" if self.api_server else "api=down")
        return " ".join(words)

    @classmethod
    def read(cls, text: str) -> Statement:
        """Read a statement; raises StatementError."""
        if len(text) > STATEMENT_BYTES_MAX:
            raise StatementError(f"a statement of {len(text)} characters exceeds {STATEMENT_BYTES_MAX}")
        words = dict(word.partition("=")[::2] for word in text.split(" "))
        uid, api = words.get("cluster", ""), words.get("api")
        if uid and not is_uid(uid):
            raise StatementError("a statement's cluster is not the UID of an object")
        if api is not None and api not in _API:
            raise StatementError("a statement's api is neither up nor down")
        return cls(uid, None if api is None else _API[api])
