"""The bounds of the text in an event: clients choose it, and a queue of events has to be bounded too."""

from __future__ import annotations

import msgspec
from msgspec.structs import force_setattr

# A resource's name has at most 253 characters, a label value 63. A longer user agent is noise.
NAME_CHARACTERS_MAX = 1024
# exec scripts are part of the query, and are kept because operators need them; a request head may hold 1 MiB.
TARGET_CHARACTERS_MAX = 64 * 1024
# As many arguments as fit into such a target, each at least `command=&`. The total text of the arguments has
# the same bound as the target.
ARGV_ITEMS_MAX = TARGET_CHARACTERS_MAX // 9
# Selectors have some hundred characters. More of a read's query adds no evidence and fills the disk.
READ_QUERY_CHARACTERS_MAX = 2048
# Excerpt of the target of a request that is refused before policy decides: enough to show the attempt.
EXCERPT_CHARACTERS_MAX = 1024
# Bound of a masked target, in which one character may become three (`%5B`). The bound before masking is
# TARGET_CHARACTERS_MAX: cutting after masking could hide a command behind text that looks like a secret.
_MASKED_CHARACTERS_MAX = 3 * TARGET_CHARACTERS_MAX
# All other texts are bounded by NAME_CHARACTERS_MAX.
_CHARACTERS_MAX = {"raw_target": _MASKED_CHARACTERS_MAX, "note": TARGET_CHARACTERS_MAX}


def bound(record: msgspec.Struct, *names: str) -> None:
    """Bound the named texts of a new record. Nearly all are short and ASCII, and stay as they are."""
    values = [getattr(record, name) for name in names]
    every = "".join(values)
    if len(every) <= NAME_CHARACTERS_MAX and every.isascii() and "\0" not in every:
        return
    for name, value in zip(names, values, strict=True):
        force_setattr(record, name, _bounded(value, _CHARACTERS_MAX.get(name, NAME_CHARACTERS_MAX)))


def bounded_argv(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the arguments within ARGV_ITEMS_MAX and TARGET_CHARACTERS_MAX; a last one counts the others."""
    kept: list[str] = []
    left = TARGET_CHARACTERS_MAX
    for number, value in enumerate(values):
        if number == ARGV_ITEMS_MAX or left <= 0:
            kept.append(f"…[{len(values) - number} more arguments]")
            break
        kept.append(_bounded(value, left))
        left -= len(value)
    return tuple(kept)


def _bounded(value: str, characters_max: int) -> str:
    if len(value) > characters_max:
        value = f"{value[:characters_max]}…[{len(value) - characters_max} more characters]"
    # A text in PostgreSQL has no zero byte, and UTF-8 no lone surrogate (as in a file name of another
    # encoding). Either would fail the whole batch.
    value = value.replace("\0", "\\x00")
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")
