"""Makes untrusted text safe for a terminal.

Clients choose much of the displayed text. A user agent must not be able to clear the screen, set the window
title or reverse the line (kubectl's CVE-2021-25743).

This is separate from the trail's modules, because every table of `hawse admin` needs it, and none needs a
database.
"""

from __future__ import annotations

import unicodedata

_TURNING = frozenset({"R", "AL", "AN"})


def escape(text: str) -> str:
    r"""Escape controls, right-to-left and combining characters as `\x1b` and the like."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_escape_character, text))


def escape_lines(text: str) -> str:
    """Make each line of a text safe for a terminal."""
    return "\n".join(map(escape, text.split("\n")))


def _escape_character(character: str) -> str:
    if character == "\\":
        return r"\\"
    if (
        character.isprintable()
        and not unicodedata.combining(character)
        and unicodedata.bidirectional(character) not in _TURNING
    ):
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
