"""The bench of calls that are begun by their connection's task, and of calls that are begun without it."""

from __future__ import annotations

from tests.proxy.hub.calls.bench import bench as bench
