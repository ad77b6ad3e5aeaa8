"""Calls that a person approves: what a real API server does is what the approver was shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.cluster import needs
from tests.system.approvals.effects import CASES
from tests.system.approvals.scene import Scene
from tests.system.world import World


@pytest.fixture(scope="module")
def scene(world: World) -> Iterator[Scene]:
    scene = Scene.of(world)
    yield scene
    scene.close()


@needs("apps")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_shown_is_what_is_done(scene: Scene, case: Callable[[Scene], None]) -> None:
    case(scene)
