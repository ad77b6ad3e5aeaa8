"""Parses JSON from an untrusted source: an answer, or a file that others may write."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """Return the document, which the caller must validate; raises only ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        # Callers need not know of this error: such a document is as invalid as any other.
        raise ValueError("the JSON is nested too deep") from None
