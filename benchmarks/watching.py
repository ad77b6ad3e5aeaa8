"""Many open watches in a client process of their own (benchmarks.watchers), at this process's command."""

from __future__ import annotations

import json

import attrs

from benchmarks.system import Endpoint
from benchmarks.talk import Talk

PATH = "/api/v1/namespaces/work/pods?watch=true&allowWatchBookmarks=true&resourceVersion=4711"


class Watching(Talk):
    """The client; leaving the block ends it, and with it its watches."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__("benchmarks.watchers")
        self.tell(json.dumps({"endpoint": attrs.asdict(endpoint), "path": PATH}, default=str))

    def open(self, count: int) -> None:
        """Open so many more; each has been answered when this returns. Raises RunFailed."""
        self.ask(f"open {count}")

    def listen(self, seconds: float) -> list[int]:
        """How long each event of the next seconds was under way, in ns, sorted. Raises RunFailed."""
        return sorted(json.loads(self.ask(f"listen {seconds}")))
