"""What a session has gone through: how often it was without a transport, and what that has cost."""

from __future__ import annotations

from typing import Final

import attrs

__all__ = ["UNINTERRUPTED", "Interruptions"]


@attrs.frozen
class Interruptions:
    """What a session has gone through so far."""

    detaches: int = 0
    """How often its transport was lost and the session went on."""
    away_s: float = 0.0
    """For how long it had none, in all."""
    replayed_frames: int = 0
    """What this side has sent again."""

    def since(self, before: Interruptions) -> Interruptions:
        """What of it came after `before`."""
        return Interruptions(
            self.detaches - before.detaches,
            self.away_s - before.away_s,
            self.replayed_frames - before.replayed_frames,
        )


# What nearly every session has gone through, and is asked for with every request.
UNINTERRUPTED: Final = Interruptions()
