"""An upstream that is not the usual nginx: one that stands elsewhere, or answers otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from benchmarks.system import Endpoint


@attrs.frozen
class OtherUpstream:
    """Where it is and which processes are its own (benchmarks.system.Upstream); it serves no bodies."""

    endpoint: Endpoint
    processes: Mapping[str, int] = attrs.Factory(dict)
    versions: Mapping[str, str] = attrs.Factory(dict)
    memory: Path = Path("/nonexistent")

    def body(self, size: int) -> str:
        """Refused: a workload that needs bodies has the wrong upstream."""
        raise LookupError(f"this upstream has no bodies, of {size} bytes or any")
