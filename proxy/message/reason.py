"""The reason that an agent states for its calls, in the header `Hawse-Reason`.

It is a claim: nothing verifies it, and no decision depends on it. The hub records it and shows it to persons.
No cluster gets it: the header is not among those that hub and relay forward (`proxy.message.rewrite`).
"""

from __future__ import annotations

from collections.abc import Sequence

REASON_HEADER = b"hawse-reason"
# One sentence, which fits into a line or two of a terminal and of the console.
REASON_CHARACTERS_MAX = 200


class ReasonError(ValueError):
    """A text is no reason; the message never repeats it."""


def check_reason(text: str) -> str:
    """Return a reason without the blanks around it; raises ReasonError.

    Control characters and marks of direction are refused: they could change how the rest of a line is read.
    """
    reason = text.strip()
    if len(reason) > REASON_CHARACTERS_MAX:
        raise ReasonError(f"has {len(reason)} characters, {REASON_CHARACTERS_MAX} is the limit")
    if not reason.isprintable():
        raise ReasonError("has a control character, a line break or a mark of direction: state plain text")
    return reason


def read_reason(values: Sequence[bytes]) -> str:
    """Return the reason of a request by the values of its header, in UTF-8; raises ReasonError."""
    if len(values) > 1:
        raise ReasonError("is given more than once")
    try:
        return check_reason(values[0].decode()) if values else ""
    except UnicodeDecodeError as error:
        raise ReasonError("is not UTF-8") from error
