"""Which targets are asked, and in which order: with connections that are answered at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import cast

from benchmarks.client import Loop
from benchmarks.roaming import WARM_UP_ROUNDS, roam


class Answered:
    """A connection whose answer is there when the loop looks for it."""

    def __init__(self, loop: AtOnce) -> None:
        self.loop = loop
        self.began_ns = 0

    def ask(self, head: bytes) -> None:
        self.loop.asked.append(head)
        self.loop.waiting.append(self)


class AtOnce:
    """As much of a Loop as there is to it without sockets."""

    def __init__(self, connections: int) -> None:
        self.connections = {number: Answered(self) for number in range(connections)}
        self.answered: Callable[[Answered], None] = lambda connection: None
        self.asked: list[bytes] = []
        self.waiting: list[Answered] = []
        self.latencies_ns: list[int] = []
        self.requests = 0

    def run(self) -> None:
        while self.waiting:
            self.answered(self.waiting.pop(0))


def asked(heads: list[bytes], connections: int) -> list[bytes]:
    loop = AtOnce(connections)
    roam(cast(Loop, loop), heads, WARM_UP_ROUNDS * len(heads), 0)
    assert len(loop.latencies_ns) == loop.requests == len(loop.asked)
    return loop.asked


def test_a_warm_up_asks_every_target() -> None:
    heads = [b"%d" % number for number in range(50)]
    assert set(asked(heads, 4)) == set(heads)


def test_a_warm_up_ends() -> None:
    # Each connection may have one more under way when the last one that counts is answered.
    assert 100 <= len(asked([b"%d" % number for number in range(50)], 4)) < 104


def test_every_run_asks_the_same() -> None:
    heads = [b"%d" % number for number in range(50)]
    assert asked(heads, 4) == asked(heads, 4)


def test_chance_prefers_no_target() -> None:
    loop = AtOnce(4)
    roam(cast(Loop, loop), [b"a", b"b"], 0, 0.01)
    counts = Counter(loop.asked)
    assert set(counts) == {b"a", b"b"}
    assert 0.5 < counts[b"a"] / counts[b"b"] < 2
