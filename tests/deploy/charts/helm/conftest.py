"""The versions of Helm that `make charts` unpacks; without them there are no tests here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.deploy.charts.helm.programs import Helm

PROGRAMS = os.environ.get("HAWSE_TEST_HELM", "")
collect_ignore_glob = [] if PROGRAMS else ["test_*.py"]


@pytest.fixture(params=["helm-3", "helm-4"])
def helm(request: pytest.FixtureRequest, tmp_path: Path) -> Helm:
    return Helm(Path(PROGRAMS) / request.param, tmp_path)
