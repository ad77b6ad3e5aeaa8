"""The MCP servers that `make test-mcp` installs; without them there are no tests here."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("HAWSE_TEST_MCP") else ["test_*.py"]
