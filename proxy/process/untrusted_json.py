"""JSON that is not known to be sound: an answer, or a file that lay where others write."""

from __future__ import annotations

import json
from typing import Any


def read_json(text: str | bytes) -> Any:
    """The one document in it, of which nothing is known yet; raises ValueError alone."""
    try:
        return json.loads(text)
    except RecursionError:
        # As good as none, and who reads a document is not to have to think of it.
        raise ValueError("the JSON is nested too deep") from None
