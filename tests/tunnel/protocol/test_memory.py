from __future__ import annotations

from collections.abc import Iterable

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.memory import Level, Memory, victims


@attrs.define(eq=False)
class FakeHolder:
    name: str
    held_bytes: int
    moved_at: float
    group: str = "g"


@attrs.define(eq=False)
class FakeConnection:
    memory: Memory
    streams: list[FakeHolder]
    evicted: list[str] = attrs.Factory(list)

    def holders(self) -> Iterable[FakeHolder]:
        return list(self.streams)

    def evict(self, holder: object) -> None:
        assert isinstance(holder, FakeHolder)
        self.evicted.append(holder.name)
        self.memory.release(holder.held_bytes)
        holder.held_bytes = 0


@pytest.mark.parametrize(
    ("outside", "held", "level"),
    [
        (0, 0, Level.FREE),
        (0, 49, Level.FREE),
        (0, 50, Level.HALF),
        (0, 75, Level.HALF),
        (0, 76, Level.SQUEEZED),
        (0, 150, Level.SQUEEZED),
        (60, 0, Level.FREE),
        (60, 19, Level.FREE),
        (60, 20, Level.HALF),
        (60, 30, Level.HALF),
        (60, 31, Level.SQUEEZED),
        (90, 4, Level.FREE),
        (120, 1, Level.SQUEEZED),
    ],
)
def test_windows_go_by_what_sessions_hold_of_what_is_left_to_them(
    outside: int, held: int, level: Level
) -> None:
    process = Memory(100)
    memory = Memory(2**40, parent=process)
    process.charge_outside(outside)
    memory.charge(held)
    assert memory.level() is level
    assert process.level() is level
    assert (memory.headroom_bytes < 0) == (level is Level.SQUEEZED)
    process.charge_outside(-outside)
    assert process.used_bytes == held


@pytest.mark.parametrize("outside", [0, 30, 74])
def test_it_is_short_and_full_by_all_that_is_used(outside: int) -> None:
    process = Memory(100)
    memory = Memory(2**40, parent=process)
    process.charge_outside(outside)
    memory.charge(75 - outside)
    assert not memory.short
    memory.charge(1)
    assert memory.short
    assert process.short
    assert not memory.full
    process.charge_outside(24)
    assert memory.full
    assert process.full


def test_what_fills_an_account_is_told_whichever_it_is() -> None:
    process = Memory(100)
    one, other = Memory(60, parent=process), Memory(60, parent=process)
    assert not one.charge(59)
    assert not other.charge(40)
    assert one.charge(1)
    assert one.full
    one.release(1)
    assert other.charge(1)
    assert process.full
    assert other.full
    assert not other.used_bytes >= other.limit_bytes
    assert Memory(10).charge(10)


def test_the_fuller_account_decides_and_both_come_back_to_zero() -> None:
    process = Memory(1000)
    one, other = Memory(800, parent=process), Memory(800, parent=process)
    one.charge(500)
    other.charge(300)
    assert (process.used_bytes, one.level(), other.level()) == (800, Level.SQUEEZED, Level.SQUEEZED)
    one.release(500)
    assert other.level() is Level.FREE
    other.release(300)
    assert process.used_bytes == one.used_bytes == other.used_bytes == 0


def test_there_is_one_account_above_a_sessions_and_none_above_that() -> None:
    with pytest.raises(AssertionError, match="one above it at most"):
        Memory(10, parent=Memory(10, parent=Memory(10)))


def test_of_a_group_the_largest_holders_go_first_and_among_them_the_longest_unmoved() -> None:
    memory = Memory(1000)
    streams = [
        FakeHolder("holds nothing", 0, 0.0),
        FakeHolder("small, stuck longest", 199, 1.0),
        FakeHolder("large, stuck", 200, 10.0),
        FakeHolder("large, moves", 400, 50.0),
    ]
    connection = FakeConnection(memory, streams)
    memory.charge(799)
    assert len(victims([connection], 200)) == 1
    assert len(victims([connection], 10**9)) == 3
    for evict in victims([connection], 201):
        evict()
    assert connection.evicted == ["large, stuck", "large, moves"]


def test_a_group_that_moves_many_streams_loses_them_before_one_with_a_large_idle_stream() -> None:
    memory = Memory(1000)
    greedy = [FakeHolder(f"greedy{n}", 100, 50.0 + n, "greedy") for n in range(6)]
    connection = FakeConnection(memory, [FakeHolder("paused", 300, 0.0, "modest"), *greedy])
    memory.charge(900)
    for evict in victims([connection], 300):
        evict()
    assert connection.evicted == ["greedy0", "greedy1", "greedy2"]


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 9), st.sampled_from("abcd")), max_size=30),
    st.integers(0, 10_000),
)
def test_a_group_below_its_share_loses_nothing_while_another_is_above(
    said: list[tuple[int, int, str]], excess: int
) -> None:
    memory = Memory(2**40)
    streams = [FakeHolder("", held, float(moved), group) for held, moved, group in said]
    connection = FakeConnection(memory, streams)
    memory.charge(sum(stream.held_bytes for stream in streams))
    freed = 0
    for evict in victims([connection], excess):
        assert freed < excess
        held = {group: sum(s.held_bytes for s in streams if s.group == group) for group in "abcd"}
        before = memory.used_bytes
        evict()
        freed += before - memory.used_bytes
        (loser,) = {
            group for group in held if held[group] != sum(s.held_bytes for s in streams if s.group == group)
        }
        holding = [each for each in held.values() if each]
        assert held[loser] * len(holding) >= sum(holding)
    assert freed >= min(excess, sum(held for held, _, _ in said))


def test_nothing_is_evicted_below_the_limit() -> None:
    memory = Memory(100)
    connection = FakeConnection(memory, [FakeHolder("a", 99, 0.0)])
    memory.join(connection)
    memory.charge(99)
    memory.relieve()
    assert connection.evicted == []


def test_a_full_process_evicts_in_whichever_session_holds_most() -> None:
    process = Memory(1000)
    greedy_memory, modest_memory = Memory(5000, parent=process), Memory(5000, parent=process)
    greedy = FakeConnection(greedy_memory, [FakeHolder(f"g{n}", 200, float(n)) for n in range(4)])
    modest = FakeConnection(modest_memory, [FakeHolder("m", 50, 0.0), FakeHolder("n", 150, 9.0)])
    for connection in (greedy, modest):
        connection.memory.join(connection)
        connection.memory.charge(sum(holder.held_bytes for holder in connection.streams))
    modest_memory.relieve()
    assert greedy.evicted == ["g0"]
    assert modest.evicted == []
    assert process.used_bytes == 800


def test_a_connection_that_left_is_not_asked() -> None:
    process = Memory(10)
    memory = Memory(10, parent=process)
    connection = FakeConnection(memory, [FakeHolder("a", 10, 0.0)])
    memory.join(connection)
    memory.charge(10)
    memory.leave(connection)
    process.relieve()
    assert connection.evicted == []
