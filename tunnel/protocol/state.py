"""The life of one direction of one stream: every transition, in one table.

Rule 1: everything that may happen to a half is in TRANSITIONS, and a missing entry *is* the error.
Rule 2: this file does not know which side we are. A stream is two halves, one we send and one we receive;
both obey the same table. Local or remote decides only what the error becomes (LocalProtocolError
at our own caller, RESET(STREAM_CLOSED) at the peer). Rule 3: the halves never look at each other. A stream
is gone from the wire when both are at rest; there is no third table of products (open, half closed local,
half closed remote, …) to keep right.

    OPEN makes the opener's half FLOWING (its head stood in the OPEN) and the acceptor's half FRESH.

       FRESH ──HEAD, DATA──▶ FLOWING ──FIN──▶ ENDED
         └────────FIN─────────────────────────▲
       FRESH, FLOWING ──RESET──▶ BROKEN       ENDED ──RESET──▶ ENDED
"""

from __future__ import annotations

import enum
from typing import Final

from tunnel.protocol.errors import IllegalTransition


class Half(enum.Enum):
    at_rest: bool
    """Nothing more may come in this direction."""

    FRESH = "fresh"
    """Nothing was said in this direction yet; a HEAD may still come."""
    FLOWING = "flowing"
    ENDED = "ended"
    """FIN: the end was said, and it is a clean one. A later RESET cannot unsay it."""
    BROKEN = "broken"

    # Those of an enum hash their names, which takes two calls for each look into the table.
    __hash__ = object.__hash__

    def __init__(self, name: str) -> None:
        # Precomputed: it is read several times per stream.
        self.at_rest = name in ("ended", "broken")


# Plain names for the hot path: until Python 3.12, finding a member in its enum costs more than comparing it.
FRESH: Final = Half.FRESH
FLOWING: Final = Half.FLOWING
ENDED: Final = Half.ENDED
BROKEN: Final = Half.BROKEN


class Step(enum.Enum):
    __hash__ = object.__hash__

    HEAD = "HEAD"
    DATA = "DATA"
    FIN = "FIN"
    RESET = "RESET"


TRANSITIONS: dict[tuple[Half, Step], Half] = {
    # The head is the first word of a direction or it is never said: bytes first means that there is none.
    (Half.FRESH, Step.HEAD): Half.FLOWING,
    (Half.FRESH, Step.DATA): Half.FLOWING,
    (Half.FRESH, Step.FIN): Half.ENDED,
    (Half.FRESH, Step.RESET): Half.BROKEN,
    (Half.FLOWING, Step.DATA): Half.FLOWING,
    (Half.FLOWING, Step.FIN): Half.ENDED,
    (Half.FLOWING, Step.RESET): Half.BROKEN,
    # RESET closes both halves, but the one that had ended had ended well.
    (Half.ENDED, Step.RESET): Half.ENDED,
    # Both sides may RESET at the same moment.
    (Half.BROKEN, Step.RESET): Half.BROKEN,
}


def after(half: Half, step: Step) -> Half:
    """The state that follows, or IllegalTransition."""
    following = TRANSITIONS.get((half, step))
    if following is None:
        raise IllegalTransition(f"{step.value} on a half that is {half.value}")
    return following
