"""Which targets are asked, and in which order: with connections that are answered at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import cast

from benchmarks.client import Loop
from benchmarks.roaming import WARM_UP_ROUNDS, roam


class Answered:
    """A connection whose answer is there when the loop looks for it."""

    def __init__(self, loop: AtOnce, number: int) -> None:
        self.loop = loop
        self.number = number
        self.began_ns = 0

    def ask(self, head: bytes) -> None:
        self.loop.twice_at_once += self in self.loop.waiting
        self.loop.asked.append(head)
        self.loop.waiting.append(self)
        self.loop.most_waiting = max(self.loop.most_waiting, len(self.loop.waiting))


class AtOnce:
    """As much of a Loop as there is to it without sockets."""

    def __init__(self, connections: int) -> None:
        self.connections = {number: Answered(self, number) for number in range(connections)}
        self.answered: Callable[[Answered], None] = lambda connection: None
        self.asked: list[bytes] = []
        self.waiting: list[Answered] = []
        self.latencies_ns: list[int] = []
        self.requests = 0
        self.most_waiting = 0
        self.twice_at_once = 0
        self.next_answered = 0
        """The place among those that wait: the first one, or -1 for the last one."""

    def run(self) -> None:
        while self.waiting:
            self.answered(self.waiting.pop(self.next_answered))


HEADS = [b"%d" % number for number in range(50)]


def warmed_up(at_once: int) -> list[bytes]:
    loop = AtOnce(len(HEADS))
    roam(cast(Loop, loop), HEADS, at_once, WARM_UP_ROUNDS, 0)
    assert len(loop.latencies_ns) == loop.requests == len(loop.asked)
    return loop.asked


def test_a_warm_up_asks_every_target_as_often_as_it_has_rounds() -> None:
    assert set(Counter(warmed_up(4)).values()) == {WARM_UP_ROUNDS}
    assert set(warmed_up(4)) == set(HEADS)


def test_a_warm_up_never_asks_a_connection_that_waits() -> None:
    loop = AtOnce(len(HEADS))
    loop.next_answered = -1
    roam(cast(Loop, loop), HEADS, 40, WARM_UP_ROUNDS, 0)
    assert loop.twice_at_once == 0


def roamed(at_once: int) -> AtOnce:
    loop = AtOnce(len(HEADS))
    # A busy machine asks a tenth of what a quiet one does.
    roam(cast(Loop, loop), HEADS, at_once, 0, 0.1)
    return loop


def test_no_more_are_under_way_than_were_asked_for() -> None:
    assert roamed(4).most_waiting == 4
    assert roamed(100).most_waiting == len(HEADS)


def test_a_connection_has_one_request_at_a_time() -> None:
    assert roamed(40).twice_at_once == 0


def test_chance_is_the_same_in_every_run_and_prefers_no_target() -> None:
    one, other = roamed(4).asked, roamed(4).asked
    common = min(len(one), len(other))
    assert common > 500
    assert one[:common] == other[:common]
    counts = Counter(one)
    assert set(counts) == set(HEADS)
    assert max(counts.values()) < 4 * len(one) / len(HEADS)
