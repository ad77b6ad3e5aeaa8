"""The topics that have changed, for pages that are open: no data, since a page asks for that itself.

Nothing runs while there is no subscriber, and a change costs nothing where it is made. Each second the first
subscriber that wakes compares what is watched with what it was a second before, for all of them. So a change
is at most a second old, and any number of changes is one event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import attrs
import msgspec
import trio

from proxy.hub.admin.verbs.answers import ServerEvent
from proxy.hub.store.entities import Snapshot

# Between two events of a stream.
EVERY_S = 1.0

Watched = Mapping[str, Callable[[], object]]
"""By topic: returns a value that differs after a change. It is cheap, and does not wait."""

# The topics of the directory, and the parts of a snapshot that they are.
OF_SNAPSHOT: Mapping[str, tuple[str, ...]] = {
    "teams": ("teams_by_name",),
    "agents": ("agents_by_id", "api_keys_by_hash", "agent_keys_by_kid", "codes_by_hash", "rules_by_issuer"),
    "clusters": ("clusters_by_id",),
    "policies": ("bundle",),
    "tokens": ("admin_tokens_by_hash",),
}


@attrs.define(eq=False)
class ChangeFeed:
    """Compares what is watched, at most once each EVERY_S."""

    snapshot: Callable[[], Snapshot]
    watched: Watched
    _before: Snapshot | None = None
    _values: dict[str, object] = attrs.Factory(dict)
    _numbers: dict[str, int] = attrs.Factory(dict)
    """How often each topic has changed."""
    _compared_at: float = -math.inf

    def subscribe(self, topics: Collection[str]) -> Subscription:
        """Return a source of the changes of these topics from now on."""
        self._compare()
        return Subscription(self, frozenset(topics), dict(self._numbers))

    def changed_since(self, seen: dict[str, int]) -> set[str]:
        """Return the topics that have changed, and set their numbers in `seen`."""
        # Half: the subscribers that wake in one pass find the comparison of the first one.
        if trio.current_time() >= self._compared_at + EVERY_S / 2:
            self._compare()
        changed = {topic for topic, number in self._numbers.items() if number != seen.get(topic)}
        seen.update(self._numbers)
        return changed

    def _compare(self) -> None:
        self._compared_at = trio.current_time()
        before, now = self._before, self.snapshot()
        self._before = now
        if before is not None and before is not now:
            for topic, parts in OF_SNAPSHOT.items():
                if any(getattr(before, part) != getattr(now, part) for part in parts):
                    self._changed(topic)
        for topic, value_of in self.watched.items():
            value = value_of()
            if topic in self._values and self._values[topic] != value:
                self._changed(topic)
            self._values[topic] = value

    def _changed(self, topic: str) -> None:
        self._numbers[topic] = self._numbers.get(topic, 0) + 1


@attrs.define(eq=False)
class Subscription:
    """The changes for one stream (Source)."""

    feed: ChangeFeed
    topics: frozenset[str]
    _seen: dict[str, int]
    _begun: bool = False

    async def receive(self) -> Sequence[ServerEvent]:
        """Return the next event; the first one has no topics, and says that the stream is open."""
        if not self._begun:
            self._begun = True
            await trio.lowlevel.checkpoint()
            return [_event([])]
        while True:
            # All subscribers wake in the same pass of the loop: one wake-up a second of an idle hub.
            await trio.sleep_until((math.floor(trio.current_time() / EVERY_S) + 1) * EVERY_S)
            if changed := self.feed.changed_since(self._seen) & self.topics:
                return [_event(sorted(changed))]

    async def aclose(self) -> None:
        """Release nothing: the feed knows no subscribers."""
        await trio.lowlevel.checkpoint()


def _event(topics: Sequence[str]) -> ServerEvent:
    return ServerEvent(msgspec.json.encode({"topics": topics}), "changed")
