"""The interruptions of a session: how often it had no transport, and what that has cost."""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["UNINTERRUPTED", "Interruptions"]


@attrs.frozen
class Interruptions:
    """The interruptions of a session so far."""

    detaches: int = 0
    """How often its transport was lost and the session went on."""
    away_s: float = 0.0
    """For how long it had none, in all."""
    replayed_frames: int = 0
    """Frames that this side has sent again."""

    def since(self, before: Interruptions) -> Interruptions:
        """Return the interruptions since `before`."""
        return Interruptions(
            self.detaches - before.detaches,
            self.away_s - before.away_s,
            self.replayed_frames - before.replayed_frames,
        )


# The value of nearly every session. It is read with every request.
UNINTERRUPTED: Final = Interruptions()
