"""The charge of a row, compared with SQLite's real use of the file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from audit.record import Actor, ActorType, Client, Phase
from audit.shares import PAGE_BYTES, taken_bytes
from audit.store import AuditStore
from tests.audit.events import call

# The file's pages: the charge may be slightly lower, if rows leave as much space empty as possible.
LEAST = 0.97
# And up to this factor higher, if an agent's rows pack well among those of others.
MOST = 1.6


@pytest.fixture
def store(path: Path) -> AuditStore:
    return AuditStore(path)


def grown(store: AuditStore, sizes: Sequence[int], user_agents: Sequence[int] = ()) -> tuple[int, int]:
    """The growth of a trail by events with notes of these lengths, and the agent's charge for them."""
    before, charged = pages(store), 0
    for start in range(0, len(sizes), 250):
        batch = [replace(call(phase=Phase.COMPLETE), note="x" * size) for size in sizes[start : start + 250]]
        if user_agents:
            # Each has a common part of its own.
            batch = [
                replace(
                    event,
                    client=Client("10.0.0.1", f"{number:06}" + "u" * user_agents[number % len(user_agents)]),
                )
                for number, event in enumerate(batch, start)
            ]
        found = store.append(batch)
        assert set(found) == {("a-1", "robot")}
        charged += found["a-1", "robot"]
    return (pages(store) - before) * PAGE_BYTES, charged


def pages(store: AuditStore) -> int:
    found = store._connected().exec_driver_sql("PRAGMA page_count").scalar()
    store._connected().commit()
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ([0], 1.2),
        ([300], 1.3),
        ([1000], MOST),
        ([1700], MOST),
        ([1800], MOST),
        # Alone in its page; beside rows of other lengths it leaves more space empty.
        ([3000], 2.1),
        ([3500, 0], MOST),
        ([1660, 1780], MOST),
        ([4000], MOST),
        ([8000, 20], MOST),
        ([60_000], 1.2),
    ],
)
def test_an_agent_is_charged_what_its_rows_take_of_the_disk(
    store: AuditStore, sizes: list[int], most: float
) -> None:
    size, charged = grown(store, sizes * (1_000_000 // (sum(sizes) + 400 * len(sizes)) + 1))
    assert LEAST * size < charged < most * size


def test_rows_of_any_length_are_charged_in_full(store: AuditStore) -> None:
    choose = random.Random(7)  # the same rows each time
    size, charged = grown(store, [choose.choice((10, 500, 1500, 2500, 6000)) for _ in range(2000)])
    assert LEAST * size < charged < MOST * size


def test_a_user_agent_of_its_own_for_each_event_is_charged_as_well(store: AuditStore) -> None:
    size, charged = grown(store, [0] * 1500, [10, 400, 900])
    assert LEAST * size < charged < MOST * size


def test_no_agent_is_charged_for_another_agent_or_an_operator(store: AuditStore) -> None:
    mine = call(phase=Phase.COMPLETE)
    hers = replace(mine, actor=replace(mine.actor, id="a-2", name="other"), note="x" * 3000)
    operator = replace(mine, actor=Actor(ActorType.OPERATOR, "root"))
    alone = store.append([mine])["a-1", "robot"]
    # Their common part is in the file already.
    again = store.append([hers, mine, operator, hers])
    assert set(again) == {("a-1", "robot"), ("a-2", "other")}
    assert again["a-1", "robot"] < alone
    assert store.append([]) == {}


def test_what_a_row_takes_grows_with_it() -> None:
    sizes = [taken_bytes(size) for size in range(1, 70_000, 7)]
    assert all(taken >= size for taken, size in zip(sizes, range(1, 70_000, 7), strict=True))
    assert sizes[-1] < 70_000 * 1.2
