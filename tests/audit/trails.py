"""What stands in a trail, to compare with."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from audit.reader import AuditReader


def bodies(path: Path) -> list[bytes]:
    """Each event's JSON, as it was written."""
    with closing(AuditReader(path)) as reader:
        return [stored.body for stored in reader.query()]


def read(path: Path) -> list[dict[str, object]]:
    """Each event as a dict, with its number."""
    with closing(AuditReader(path)) as reader:
        return [json.loads(stored.line) for stored in reader.query()]
