"""Waits for what a process does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(met: Callable[[], bool], within_s: float = 15.0) -> None:
    deadline = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < deadline, f"not met within {within_s} s"
        time.sleep(0.01)
