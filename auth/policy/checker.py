"""Checks a document field by field, and collects all faults instead of stopping at the first.

Unknown fields are faults. If they were ignored, a rule with a misspelt restriction would allow what it was
written to deny.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from auth.policy.patterns import Names
from auth.policy.text import Fault, Item, shown
from auth.principal import IdentityError, slug

# Maximum entries of one list in a rule: a request of a new kind may be tested against all of them.
LIST_LENGTH_MAX = 256
PATTERN_LENGTH_MAX = 253


class Checker:
    """Checks items and collects their faults."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.faults: list[Fault] = []

    def fault(self, item: Item, message: str) -> None:
        self.faults.append(Fault(self.file, item.line, item.path, message))

    def mapping(self, item: Item, known: Iterable[str], required: Iterable[str] = ()) -> dict[str, Item]:
        """The fields of an item. Fields that are not in `known` are faults, and so are empty values."""
        if not isinstance(item.value, dict):
            self.fault(item, f"must be a mapping of fields ({', '.join(known)})")
            return {}
        known = tuple(known)
        for key, value in item.value.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                self.fault(
                    value, f"there is no field {shown(key)} here, only {', '.join(sorted(known))}{hint}"
                )
            elif value.value is None:
                self.fault(value, "is empty: leave the field out, or give it a value")
        fields = {key: value for key, value in item.value.items() if key in known and value.value is not None}
        for key in required:
            if key not in item.value:
                self.fault(item, f"the field {key} is missing")
        return fields

    def text(self, item: Item | None, characters_max: int) -> str:
        """A line of printable text; empty for none."""
        if item is None:
            return ""
        if not isinstance(item.value, str):
            self.fault(item, "must be text")
            return ""
        text = " ".join(item.value.split())
        if len(text) > characters_max:
            self.fault(item, f"{len(text)} characters exceed the {characters_max} of this field")
        if not text.isprintable():
            self.fault(item, f"{shown(text)} holds characters that cannot be printed")
        return text

    def name(self, item: Item | None, what: str) -> str:
        """A name in the form of agents' and teams' names."""
        if item is None:
            return ""
        if not isinstance(item.value, str):
            self.fault(item, f"must be text: a {what}")
            return ""
        try:
            return slug(what, item.value)
        except IdentityError as error:
            self.fault(item, str(error))
            return ""

    def flag(self, item: Item | None, default: bool) -> bool:
        if item is None:
            return default
        if not item.plain or item.value not in ("true", "false"):
            self.fault(item, f"{shown(item.value)} is not a flag: use true or false")
            return default
        return item.value == "true"

    def choice(self, item: Item | None, choices: Iterable[str]) -> str:
        if item is None:
            return ""
        listed = tuple(choices)
        if item.value not in listed:
            self.fault(item, f"{shown(item.value)} is not one of {', '.join(listed)}")
            return ""
        return str(item.value)

    def items(self, item: Item, length_max: int = LIST_LENGTH_MAX) -> list[Item]:
        """A list that is not empty. A single value never stands for a list, as in Kubernetes."""
        if not isinstance(item.value, list):
            self.fault(item, "must be a list")
            return []
        if not 1 <= len(item.value) <= length_max:
            self.fault(item, f"a list of {len(item.value)}: it must have 1 to {length_max} entries")
        return item.value

    def patterns(self, item: Item | None, allowed: re.Pattern[str], what: str) -> tuple[str, ...] | None:
        """A list of patterns; None for none."""
        if item is None:
            return None
        patterns = []
        for entry in self.items(item):
            if not isinstance(entry.value, str):
                # An empty text, as in "" for the core group, must be quoted.
                self.fault(entry, f'must be text: {what} (an empty one is written as "")')
            elif len(entry.value) > PATTERN_LENGTH_MAX or allowed.fullmatch(entry.value) is None:
                bound = f"of at most {PATTERN_LENGTH_MAX} characters"
                self.fault(entry, f"{shown(entry.value)} is not {what}, {bound}")
            elif entry.value in patterns:
                self.fault(entry, f"{shown(entry.value)} is listed twice")
            else:
                patterns.append(entry.value)
        return tuple(patterns)

    def names(self, item: Item | None, allowed: re.Pattern[str], what: str) -> Names | None:
        patterns = self.patterns(item, allowed, what)
        return None if patterns is None else Names(patterns)
