"""What is shown against what is done, on the sandbox. tests/e2e has the same for a real API server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.system.approvals.effects import CASES
from tests.system.approvals.scene import Scene

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(120)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_shown_is_what_is_done(scene: Scene, case: Callable[[Scene], None]) -> None:
    case(scene)
