"""The clients that `make test-clients` installs; without them there are no tests here."""

from __future__ import annotations

import os

# The scene of the tests in tests/system/approvals.
from tests.system.approvals.conftest import receiver, scene

__all__ = ["receiver", "scene"]

collect_ignore_glob = [] if os.environ.get("HAWSE_TEST_CLIENTS") else ["test_*.py"]
