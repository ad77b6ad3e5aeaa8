"""Parses JSON from an untrusted source: an answer, or a file that others may write."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes, *, unique: bool = False) -> Any:
    """Return the document, which the caller must validate; raises only ValueError.

    With `unique`, an object with two equal keys is refused. Otherwise the last one counts.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        # Callers need not know of this error: such a document is as invalid as any other.
        raise ValueError("the JSON is nested too deep") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has two equal keys")
    return found
