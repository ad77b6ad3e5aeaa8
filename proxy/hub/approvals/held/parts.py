"""The parts of a hub that its held calls share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from proxy.hub.approvals.held.interfaces import PreviewMaker, RequestRows
from proxy.hub.approvals.held.slots import Slots
from proxy.hub.approvals.plan.body import BodyBudget
from proxy.hub.calls.calls import Calls


@attrs.define(eq=False)
class Waits:
    """The waits for a decision. All of them end when the hub stops."""

    scopes: set[trio.CancelScope] = attrs.Factory(set)
    """Of the calls that wait now."""
    _over: bool = False

    @contextmanager
    def until(self, deadline: float) -> Iterator[trio.CancelScope]:
        """A scope that is cancelled at the deadline, on trio's clock, or when the hub stops."""
        with trio.CancelScope(deadline=deadline) as scope:
            if self._over:
                scope.cancel()
            self.scopes.add(scope)
            try:
                yield scope
            finally:
                self.scopes.discard(scope)

    def end(self) -> None:
        """End all waits, also those that begin later."""
        self._over = True
        for scope in self.scopes:
            scope.cancel()


@attrs.define(eq=False)
class Parts:
    """The parts of a hub that a held call needs."""

    calls: Calls
    requests: RequestRows
    previewer: PreviewMaker
    budget: BodyBudget
    nursery: trio.Nursery
    """Runs the tasks that give back or spend a use. Such a task may outlive its call."""
    slots: Slots = attrs.Factory(Slots)
    waits: Waits = attrs.Factory(Waits)
    using: set[str] = attrs.Factory(set)
    """The ids of the requests whose approvals calls of this hub use now."""
