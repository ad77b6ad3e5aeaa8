"""uv and pipx, of the environment that `make test-install` made. Without it no tests are here."""

from __future__ import annotations

import os

FOLDER = os.environ.get("HAWSE_TEST_INSTALLERS", "")
collect_ignore_glob = [] if FOLDER else ["test_*.py"]
