"""An agent's home, a fake hub, and that hub's certificate as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fakes.hub import FakeHub
from tests.proxy.agent.conftest import home, hub

# Fixtures, imported to be found here.
__all__ = ["home", "hub"]


@pytest.fixture
def ca(tmp_path: Path, hub: FakeHub) -> str:
    path = tmp_path / "ca.pem"
    path.write_text(hub.ca_pem)
    return str(path)
