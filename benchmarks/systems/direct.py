"""Nothing in between: the client talks to the upstream itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.system import System, Upstream


@contextmanager
def open_direct(folder: Path, upstream: Upstream) -> Iterator[System]:
    """Yield the upstream as a system without processes of its own."""
    yield System("direct", upstream.endpoint)
