"""Errors that end an agent's command."""

from __future__ import annotations

# Text from a hub is shown to a person. More than this explains nothing.
QUOTED_CHARACTERS_MAX = 300


class AgentError(Exception):
    """One line: what is wrong and what to do next. Never holds a key or token."""


class NotWritableError(AgentError):
    """A file or its folder can't be written."""


class NoAnswerError(AgentError):
    """The hub was not reached, or may not have processed the request."""


class RefusedError(AgentError):
    """The hub refused a credential or a code."""


class DeniedError(AgentError):
    """The hub accepted the credential but denied the request, or is addressed by another name."""


def reason(error: Exception) -> str:
    """Explain a failed connection to a person, without error numbers where a text exists."""
    if getattr(error, "reason", None) == "WRONG_VERSION_NUMBER":
        return "it does not speak TLS"
    if getattr(error, "reason", None) == "UNEXPECTED_EOF_WHILE_READING":
        return "the connection was cut"
    return quoted(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def quoted(text: str) -> str:
    """Escape and truncate foreign text for one line of a terminal."""
    return text[:QUOTED_CHARACTERS_MAX].encode("unicode_escape").decode("ascii")
