"""The quickstart's way by Helm, which `make test` leaves out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.quickstart.running import PAGE, run_page

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

PROGRAMS = Path(os.environ["HAWSE_TEST_CLIENTS"])


@pytest.mark.parametrize("helm", ["helm-3", "helm-4"])
def test_each_command_of_the_page_works_with_helm(tmp_path: Path, helm: str) -> None:
    programs = tmp_path / "helm"
    programs.mkdir()
    (programs / "helm").symlink_to(PROGRAMS / helm)
    path = os.pathsep.join(
        [str(programs), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    run_page(PAGE.read_text(), "helm", tmp_path, {"PATH": path})
