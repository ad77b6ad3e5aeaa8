"""How long `hawse admin migrate` takes: `python benchmarks/migrate.py URL [EVENTS]`.

URL is an empty database of PostgreSQL. Makes a data folder whose trail has EVENTS events (100,000), as
audit_search.py does, moves it, and prints the CPU and wall time of each step.
benchmarks/README.md has the figures.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from audit.store import AuditStore
from benchmarks.audit_search import made
from proxy.hub.admin.data.migrate import Target, migrate
from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.seal_file import SealFile
from proxy.hub.store.engines.postgres_address import PostgresAddress
from proxy.hub.store.store import Store

EVENTS = 100_000


def make_folder(path: Path, events: int) -> DataDir:
    """Make the data folder of a hub that has stopped."""
    data = DataDir.open(path)
    data.keys.load_or_make()
    data.pepper()
    made(data.audit_file, events)
    with (
        closing(AuditStore(data.audit_file)) as trail,
        closing(Store(data.store_file, org="acme", clock=time.time)) as store,
    ):
        store.accept_trail(trail.mark)
    return data


def measure(url: str, events: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = make_folder(Path(folder) / "hub", events)
        before_mb = _memory_mb()
        # Each step's first and last call of `progress`.
        steps: dict[str, list[tuple[float, float]]] = {}

        def progress(step: str, done: int, total: int) -> None:
            steps.setdefault(step, []).append((time.process_time(), time.monotonic()))

        began = time.process_time(), time.monotonic()
        target = Target(PostgresAddress(url), SealFile(data.path / "seal.key"))
        moved = migrate(data, target, progress)
        ended = time.process_time(), time.monotonic()
    for step, times in {**steps, "all": [began, ended]}.items():
        cpu_s, wall_s = (last - first for first, last in zip(times[0], times[-1], strict=True))
        print(f"{step:16} {1e6 * cpu_s / moved.events:8.1f} µs CPU an event  {wall_s:8.1f} s")
    print(f"{moved.events / wall_s:.0f} events a second; {_memory_mb() - before_mb:.0f} MB more memory")


def _memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else EVENTS)
