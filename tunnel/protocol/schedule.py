"""Which stream sends next: deficit round robin over groups, then over the streams of the group.

Both levels are the same ring, and the ring is fq_codel's (RFC 8290, section 4.2): a flow that was quiet
starts in `new` and is served before those that queue in `old`, for one quantum. So keystrokes and small
answers pass bulk, a thousand streams of one agent have one share, and the purpose of a stream need not be
known.

A flow that has emptied is removed only when it is at the front and `turn` is called, so `turn` is called
again after a flow was served. One that emptied in `new` goes round through `old` first, or a
flow could send a quantum, pause, and be new again for ever ("The flow is moved to the end of the list of old
queues … to prevent starvation").
"""

from __future__ import annotations

import abc
import enum
from collections import deque
from typing import Final, Generic, TypeVar

import attrs

# What one flow sends before the next, while others wait. Four quanta make a message on a link that is not
# slow; for larger messages the drain counts bytes in larger units.
QUANTUM_BYTES = 16 * 1024


class Place(enum.Enum):
    OUT = "out"
    NEW = "new"
    OLD = "old"


# Plain names for the hot path, as in `state`.
OUT: Final = Place.OUT
NEW: Final = Place.NEW
OLD: Final = Place.OLD


@attrs.define(eq=False)
class Flow(abc.ABC):
    """A member of a ring."""

    deficit: int = attrs.field(init=False, default=0)
    place: Place = attrs.field(init=False, default=OUT)

    @property
    @abc.abstractmethod
    def ready(self) -> bool:
        """Whether it could send now."""


FlowT = TypeVar("FlowT", bound=Flow)


@attrs.define(eq=False)
class Ring(Generic[FlowT]):
    new: deque[FlowT] = attrs.field(init=False, factory=deque)
    old: deque[FlowT] = attrs.field(init=False, factory=deque)

    def __len__(self) -> int:
        return len(self.new) + len(self.old)

    def add(self, flow: FlowT, sparse: bool) -> None:
        """Put a flow in that has something to send; nothing changes when it is in already.

        `sparse` is false for a flow that was not quiet but held up (by credit): it does not pass the others.
        """
        if flow.place is not OUT:
            return
        flow.deficit = QUANTUM_BYTES
        if sparse:
            flow.place = NEW
            self.new.append(flow)
        else:
            flow.place = OLD
            self.old.append(flow)

    def discard(self, flow: FlowT) -> None:
        """Take a flow out, wherever it is."""
        if flow.place is not OUT:
            (self.new if flow.place is NEW else self.old).remove(flow)
            flow.place = OUT

    def sweep(self) -> None:
        """Take out all flows that have emptied, so that they do not pile up while `turn` is not called."""
        for queue in (self.new, self.old):
            for _ in range(len(queue)):
                flow = queue.popleft()
                if flow.ready:
                    queue.append(flow)
                else:
                    flow.place = OUT

    def turn(self) -> FlowT | None:
        """The flow to serve next, or None. It stays at the front until its `deficit` is used up.

        Empty flows before it are removed; from `new` they go round through `old`.
        """
        new, old = self.new, self.old
        while queue := new or old:
            flow = queue[0]
            if flow.ready:
                if flow.deficit > 0:
                    return flow
                flow.deficit += QUANTUM_BYTES
            elif queue is old or not old:
                queue.popleft()
                flow.place = OUT
                continue
            queue.popleft()
            flow.place = OLD
            old.append(flow)
        return None


@attrs.define(eq=False)
class Group(Flow, Generic[FlowT]):
    """Streams that have one share together."""

    key: int
    users: int = attrs.field(init=False, default=0)
    """Contexts and streams that name this group; the scheduler forgets it with the last."""
    flows: Ring[FlowT] = attrs.field(init=False, factory=Ring)
    next: FlowT | None = attrs.field(init=False, default=None)
    """The flow that `ready` has found to be next."""

    @property
    def ready(self) -> bool:
        self.next = self.flows.turn()
        return self.next is not None


@attrs.define(eq=False)
class Scheduler(Generic[FlowT]):
    groups: dict[int, Group[FlowT]] = attrs.field(init=False, factory=dict)
    ring: Ring[Group[FlowT]] = attrs.field(init=False, factory=Ring)

    def enter(self, key: int) -> Group[FlowT]:
        """The group of this key, with one user more."""
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(key)
        group.users += 1
        return group

    def leave(self, group: Group[FlowT]) -> None:
        group.users -= 1
        if group.users <= 0:
            assert group.users == 0
            self.ring.discard(group)
            del self.groups[group.key]

    def activate(self, group: Group[FlowT], flow: FlowT, sparse: bool = True) -> None:
        group.flows.add(flow, sparse)
        if group.place is OUT:
            self.ring.add(group, sparse)
