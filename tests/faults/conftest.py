"""One world for all the fast tests of a process, healed before each of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.wire import Enrolment
from tests.faults.world import BY_HAND, FaultWorld, running_faults
from tests.system.conftest import echo_port as echo_port


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultWorld]:
    with running_faults(tmp_path_factory.mktemp("faults"), slow=True) as running:
        yield running


@pytest.fixture
def world(shared_world: FaultWorld) -> Iterator[FaultWorld]:
    """The shared world, with ordinary links and a connected relay."""
    shared_world.heal()
    yield shared_world
    assert shared_world.hub is not None
    assert shared_world.hub.process.poll() is None, shared_world.hub.last_words()


@pytest.fixture
def by_hand(world: FaultWorld) -> Enrolment:
    """What a relay by hand needs to dial the hub."""
    return Enrolment.read(world.folder / f"relay-{BY_HAND}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest and does nothing begins first, beside all the others."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/faults/test_idle.py"))
