"""One world with a policy that asks, for all the tests of approvals of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.system.approvals.scene import Scene
from tests.system.world import running_world


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with running_world(tmp_path_factory.mktemp("approvals")) as world:
        yield Scene.of(world)
