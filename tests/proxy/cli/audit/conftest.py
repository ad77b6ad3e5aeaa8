"""A hub with an admin API, for commands that read its trail from elsewhere."""

from __future__ import annotations

from tests.proxy.cli.admin.conftest import hub

__all__ = ["hub"]
