"""What ends an agent's command."""

from __future__ import annotations

# A hub's own words are shown to a person; more than this is no explanation.
QUOTED_CHARACTERS_MAX = 300


class AgentError(Exception):
    """One line that says what is wrong and what to do next; it never holds a key or token."""


class NotWritableError(AgentError):
    """A file, or a folder for one, that cannot be written."""


class NoAnswerError(AgentError):
    """A hub that was not reached, or is not known to have done what it was asked for."""


class RefusedError(AgentError):
    """A hub's own no to what was shown to it: a credential, or a code."""


class DeniedError(AgentError):
    """A hub's no to a request that shows a good credential, or names the hub by another name."""


def reason(error: Exception) -> str:
    """Why a connection failed, for a person: without Python's numbers where there are words."""
    if getattr(error, "reason", None) == "WRONG_VERSION_NUMBER":
        return "it speaks no TLS"
    if getattr(error, "reason", None) == "UNEXPECTED_EOF_WHILE_READING":
        return "the connection was cut"
    return quoted(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def quoted(text: str) -> str:
    """Make what somebody else wrote fit for one line of a terminal."""
    return text[:QUOTED_CHARACTERS_MAX].encode("unicode_escape").decode("ascii")
