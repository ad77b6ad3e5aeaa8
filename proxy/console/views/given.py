"""What an address gives a form: bounded, and without controls, which a field would send back unseen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Longer values come from no form.
VALUE_CHARACTERS_MAX = 1024


def given(query: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Return the values of these names that are not empty, in the order of the names."""
    values = {name: _printable(query.get(name, "")[:VALUE_CHARACTERS_MAX]) for name in names}
    return {name: value for name, value in values.items() if value}


def _printable(value: str) -> str:
    return "".join(filter(str.isprintable, value)).strip()
