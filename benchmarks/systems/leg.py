"""The leg between the two ends of a tunnel, which a workload may lead over a detour.

Each tunnel's private end dials the port that its leg gives for the public end's port. Clients and the
upstream stay where they are, so that a slow leg is slow for the tunnel alone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from benchmarks.system import System, Upstream

Leg = Callable[[int], int]
"""From the loopback port that the public end listens on to the one that the private end dials."""


def straight(port: int) -> int:
    """No detour."""
    return port


class OpenTunnel(Protocol):
    """Opens a system whose private end can be led over a detour."""

    def __call__(
        self, folder: Path, upstream: Upstream, leg: Leg = ...
    ) -> AbstractContextManager[System]: ...
