"""The clients that `make test-clients` installs; without them there are no tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.system.approvals.scene import Scene
from tests.system.world import running_world

collect_ignore_glob = [] if os.environ.get("HAWSE_TEST_CLIENTS") else ["test_*.py"]


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with running_world(tmp_path_factory.mktemp("clients")) as world:
        yield Scene.of(world)
