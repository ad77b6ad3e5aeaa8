"""The states of a request and of its answer on one HTTP/1.1 connection: every transition, in two tables.

Rule 1: each message's table lists every legal step, and a missing entry *is* the error. The error is one of
our own code (IllegalStep), because a peer's bytes are validated before they become a step.
Rule 2: this file does not know our role. A server receives the request and sends the answer, a client the
reverse. Both keep both states.
Rule 3: whether another exchange may follow is not a state of a message. As in h11, the connection keeps one
flag for it, and NEXT needs both messages at rest.

    request   IDLE ──HEAD──▶ OFFERED ──DATA──▶ BODY ──END──▶ DONE ──NEXT──▶ IDLE
              IDLE ──EXPECT──▶ WITHHELD ──CONTINUE, DATA──▶ BODY
              IDLE ──WHOLE──▶ DONE

    answer    IDLE ──ASKED──▶ AWAITED ──HEAD──▶ BODY ──END──▶ DONE ──NEXT──▶ IDLE
              IDLE ──REFUSE──▶ REFUSED ──HEAD──▶ BODY
              AWAITED ──SWITCH──▶ SWITCHED

    a message that has not ended ──FAULT──▶ BROKEN
"""

from __future__ import annotations

import enum
from typing import Final


class IllegalStep(Exception):
    """A step that is illegal in the message's state: an error of our own code, not of a peer."""


class State(enum.Enum):
    IDLE = "idle"
    """No exchange is in progress."""
    OFFERED = "offered"
    """The request's head has arrived, and its body is not read yet."""
    WITHHELD = "withheld"
    """The client sends the body after a 100 (Expect)."""
    AWAITED = "awaited"
    """The request's head has arrived, and no final answer has begun."""
    REFUSED = "refused"
    """The request could not be parsed. Its answer is the last one on the connection."""
    BODY = "body"
    DONE = "done"
    SWITCHED = "switched"
    """A 101: raw bytes follow, in both directions."""
    BROKEN = "broken"

    # Members are singletons. Enum's own hash would cost a Python call for each lookup.
    __hash__ = object.__hash__


class Step(enum.Enum):
    HEAD = "a head with a body"
    EXPECT = "a head whose body waits for a 100"
    WHOLE = "a head without a body"
    CONTINUE = "a 100"
    DATA = "body bytes, or a read of them"
    END = "the end"
    ANSWERED = "the beginning of the final answer"
    ASKED = "a request"
    INTERIM = "an interim head"
    SWITCH = "a 101"
    REFUSE = "a refusal"
    NEXT = "the next exchange"
    FAULT = "a fault"

    __hash__ = object.__hash__


# Plain names for the hot path: before Python 3.12, looking a member up in its enum costs more than comparing
# it.
IDLE: Final = State.IDLE
OFFERED: Final = State.OFFERED
WITHHELD: Final = State.WITHHELD
AWAITED: Final = State.AWAITED
REFUSED: Final = State.REFUSED
BODY: Final = State.BODY
DONE: Final = State.DONE
SWITCHED: Final = State.SWITCHED
BROKEN: Final = State.BROKEN
HEAD: Final = Step.HEAD
EXPECT: Final = Step.EXPECT
WHOLE: Final = Step.WHOLE
CONTINUE: Final = Step.CONTINUE
DATA: Final = Step.DATA
END: Final = Step.END
ANSWERED: Final = Step.ANSWERED
ASKED: Final = Step.ASKED
INTERIM: Final = Step.INTERIM
SWITCH: Final = Step.SWITCH
REFUSE: Final = Step.REFUSE
NEXT: Final = Step.NEXT
FAULT: Final = Step.FAULT


class Transitions(dict[tuple[State, Step], State]):
    """The state after each step. A lookup of an existing entry calls no Python function."""

    def __missing__(self, at: tuple[State, Step]) -> State:
        raise IllegalStep(f"{at[1].value} where the message is {at[0].value}")


REQUEST: Final = Transitions(
    {
        (IDLE, NEXT): IDLE,
        (IDLE, HEAD): OFFERED,
        (IDLE, EXPECT): WITHHELD,
        (IDLE, WHOLE): DONE,
        (OFFERED, DATA): BODY,
        (OFFERED, END): DONE,
        (WITHHELD, CONTINUE): BODY,
        # A client need not wait for the 100 (RFC 9110 section 10.1.1).
        (WITHHELD, DATA): BODY,
        # No 100 follows a final answer.
        (WITHHELD, ANSWERED): OFFERED,
        (BODY, DATA): BODY,
        (BODY, END): DONE,
        (DONE, NEXT): IDLE,
        (IDLE, FAULT): BROKEN,
        (OFFERED, FAULT): BROKEN,
        (WITHHELD, FAULT): BROKEN,
        (BODY, FAULT): BROKEN,
        (BROKEN, FAULT): BROKEN,
    }
)

ANSWER: Final = Transitions(
    {
        (IDLE, NEXT): IDLE,
        (IDLE, ASKED): AWAITED,
        (IDLE, REFUSE): REFUSED,
        (AWAITED, INTERIM): AWAITED,
        (AWAITED, HEAD): BODY,
        (AWAITED, WHOLE): DONE,
        (AWAITED, SWITCH): SWITCHED,
        (REFUSED, HEAD): BODY,
        (BODY, DATA): BODY,
        (BODY, END): DONE,
        (DONE, NEXT): IDLE,
        (AWAITED, FAULT): BROKEN,
        (REFUSED, FAULT): BROKEN,
        (BODY, FAULT): BROKEN,
        (BROKEN, FAULT): BROKEN,
    }
)
