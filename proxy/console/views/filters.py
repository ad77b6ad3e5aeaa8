"""The filters of the trail: from the address of a page, into a question to the API, and into a command.

The names are those of the API, so that an address can be read, kept and changed by hand.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from urllib.parse import urlencode

import attrs

from proxy.console.views.given import given

# In the order of the form. `cli` is the option of `hawse audit list`.
NAMES = (
    *("q", "agent", "cluster", "status", "since", "team", "namespace", "resource", "verb", "kind", "actor"),
    "until",
)
# These stand in the bar and beside it; the others behind "More filters".
IN_BAR = frozenset({"q", "agent", "cluster", "status", "kind", "since"})
_OPTIONS = {"q": "--text"}
_LABELS = {"q": "text"}


@attrs.frozen
class Chip:
    """A filter in force."""

    label: str
    value: str
    without: str
    """The address without this filter."""


@attrs.frozen
class Filters:
    """The filters in force."""

    values: Mapping[str, str]

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filters:
        """Read them from an address; the rest of it is left out."""
        return cls(given(query, NAMES))

    def __getitem__(self, name: str) -> str:
        """The value of a filter; empty if it is not in force."""
        return self.values.get(name, "")

    def path(self, base: str = "/audit", **changed: str) -> str:
        """The address with these filters; an empty value removes one, or another parameter."""
        query = {name: value for name, value in {**self.values, **changed}.items() if value}
        return f"{base}?{urlencode(query)}" if query else base

    @property
    def chips(self) -> list[Chip]:
        """The filters in force, each with the address without it."""
        return [
            Chip(_LABELS.get(name, name), self[name], self.path(**{name: ""})) for name in NAMES if self[name]
        ]

    @property
    def more(self) -> bool:
        """Whether a filter that does not stand in the bar is in force."""
        return any(self[name] for name in NAMES if name not in IN_BAR)

    @property
    def command(self) -> str:
        """The command that lists the same events."""
        words = ["hawse", "audit", "list"]
        for name in NAMES:
            if not self[name]:
                continue
            option = _OPTIONS.get(name, f"--{name}")
            # `--kind` is repeated, and the others take a list.
            values = self[name].split(",") if name == "kind" else [self[name]]
            # As one word: a value may begin with a hyphen.
            words += [
                part
                for value in values
                for part in ([f"{option}={value}"] if value.startswith("-") else [option, value])
            ]
        return shlex.join(words)
