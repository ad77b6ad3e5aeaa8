"""What waits for the disk: events, and with some of them a sender that is called once they are durable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import attrs
import trio

from audit.record import Event

Settled: TypeAlias = Callable[[str | None], None]
"""Called with None once an event is durable, or with the reason why it is not."""


@attrs.define(eq=False)
class Waiter:
    """An event whose sender is called once it is on the disk."""

    event: Event | None
    """None for a flush, which only waits for the events before it."""
    settled: Settled


@attrs.define(eq=False)
class Parked:
    """A task that waits until its event is on the disk (a Settled)."""

    woken: trio.Event = attrs.Factory(trio.Event)
    failure: str | None = None

    def __call__(self, failure: str | None) -> None:
        self.failure = failure
        self.woken.set()


# An Event in the queue has no waiting task.
Item: TypeAlias = Event | Waiter


def events_of(items: Iterable[Item]) -> list[Event]:
    """Return their events, which are to be written."""
    return [event for item in items if (event := _event_of(item)) is not None]


def waiters_of(items: Iterable[Item]) -> list[Waiter]:
    """Return those whose senders wait."""
    return [item for item in items if isinstance(item, Waiter)]


def weight_of(item: Item) -> int:
    """How many bytes it counts against the queue's bound."""
    event = _event_of(item)
    return event.weight_bytes if event is not None else 0


def settle_all(waiters: list[Waiter], failure: str | None) -> None:
    """Call the senders, in the trio thread."""
    for waiter in waiters:
        waiter.settled(failure)


def _event_of(item: Item) -> Event | None:
    """Return its event; None for a flush."""
    return item if isinstance(item, Event) else item.event
