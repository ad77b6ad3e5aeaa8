"""Two hubs on one PostgreSQL: the agent's calls come to the first one, and the relay's tunnel to the second.

Both have the second one's port as their public URL, which is where the relay dials. So every call takes one
hop. A load balancer would add its own time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.system import System, Upstream
from benchmarks.systems.hubs import NAMES, open_hubs

NAME = "hawse-hop"
FIRST, SECOND = NAMES


@contextmanager
def open_hop(folder: Path, upstream: Upstream) -> Iterator[System]:
    """Run both hubs, the relay and their database; raises Missing."""
    with open_hubs(folder, upstream, NAME, count=2, dialled=[1], balanced=False) as hubs:
        yield hubs.system
