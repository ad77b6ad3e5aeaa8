"""Whether the database still has all that this hub has applied (proxy/hub/store/versions/version.py)."""

from __future__ import annotations

from typing import Final, Protocol

import attrs

from proxy.hub.store.versions.version import Version

ACCEPT: Final = "repeat the locks and revocations that were made last, then run `hawse admin database accept`"


class Kept(Protocol):
    """The part of a store that a lineage uses."""

    def keeps(self, applied: Version) -> bool:
        """Return whether the database still has what it had at this version."""
        ...

    def accept_loss(self, applied: Version) -> None:
        """Accept that it does not."""
        ...


@attrs.frozen
class Loss:
    """A version that a hub has applied, and one that the database had after it was lost."""

    applied: int
    found: int

    def __str__(self) -> str:
        return (
            f"the database has lost changes: this hub has applied version {self.applied} of the directory, "
            f"and the database has version {self.found} without it"
        )


@attrs.define(eq=False)
class Lineage:
    """The newest version that this hub has applied, except those after a loss that is not accepted."""

    applied: Version | None
    """None at a hub's first start."""
    accepts: bool = False
    """Whether a loss is accepted without an operator (`database.accept_rollback`)."""
    loss: Loss | None = None

    @property
    def refusal(self) -> str:
        """Why nothing new may be decided by what the database has; "" if it may."""
        return "" if self.loss is None else f"{self.loss}: an operator has to accept that"

    def follow(self, store: Kept, found: Version) -> None:
        """Judge a version that was read; raises StoreUnavailableError.

        It queries `store`, after the version was read. In the other order, a failover between the two could
        stay unseen.
        """
        if self.applied is None or self.applied == found or store.keeps(self.applied):
            self.applied, self.loss = found, None
            return
        self.loss = Loss(self.applied.number, found.number)
        if self.accepts:
            # The next reading finds a new history.
            store.accept_loss(self.applied)
