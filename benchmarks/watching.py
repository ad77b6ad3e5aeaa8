"""Many open watches in a client process of their own (benchmarks.watchers), at this process's command."""

from __future__ import annotations

import json
from collections.abc import Iterator

import attrs

from benchmarks.system import System
from benchmarks.talk import Talk

PATH = "/api/v1/namespaces/work/pods?watch=true&allowWatchBookmarks=true&resourceVersion=4711"


# Watches opened with one token: well within the minute for which it is valid, on a busy machine as well.
SLICE = 100


class Watching(Talk):
    """The client; leaving the block ends it, and with it its watches."""

    def __init__(self, system: System) -> None:
        super().__init__("benchmarks.watchers")
        self._system = system

    def open(self, count: int) -> None:
        """Open so many more; each has been answered when this returns. Raises RunFailed."""
        for slice_of in slices(count, SLICE):
            endpoint = attrs.asdict(self._system.fresh_endpoint())
            job = {"endpoint": endpoint, "path": PATH, "count": slice_of}
            self.ask(f"open {json.dumps(job, default=str)}")

    def listen(self, seconds: float) -> list[int]:
        """How long each event of the next seconds was under way, in ns, sorted. Raises RunFailed."""
        return sorted(json.loads(self.ask(f"listen {seconds}")))

    def end(self) -> None:
        """End all watches, half of them abruptly, and keep the client. Raises RunFailed."""
        self.ask("end {}")


def slices(count: int, most: int) -> Iterator[int]:
    """Sizes of at most `most` that are `count` together."""
    while count > 0:
        yield min(count, most)
        count -= most
