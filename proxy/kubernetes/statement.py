"""A relay's statement to its hub: its cluster's UID, and whether its API server answers.

It is one line of text in both modes (tunnel/PROTOCOL.md, "What Hawse carries"): words `key=value`, separated
by one space. Unknown words are ignored, for the sake of later versions.
"""

from __future__ import annotations

import re
from typing import TypeGuard

import attrs

# The path of the statement in direct mode, for the hub alone. No path of the Kubernetes API starts like this.
STATEMENT_TARGET = b"/.hawse/statement"

# It is a text field in HELLO. Both words take 55 bytes; the rest is for later versions.
STATEMENT_BYTES_MAX = 256

# Kubernetes generates UUIDs and calls them opaque. The value appears in logs, events and lists.
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
_API = {"up": True, "down": False}


class StatementError(ValueError):
    """The text is not a valid statement."""


def is_uid(value: object) -> TypeGuard[str]:
    """Whether a value can be the UID of a Kubernetes object."""
    return isinstance(value, str) and _UID.fullmatch(value) is not None


@attrs.frozen
class Statement:
    """A relay's statement; empty from an older version."""

    cluster_uid: str = ""
    """The UID of the namespace `kube-system`; empty if the relay does not know it."""
    api_server: bool | None = None
    """Whether the API server answered the last probe; None if the relay does not say."""

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
