"""The CPU time that a system and its upstream spend during a block."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs

from benchmarks.accounting import CpuMeter
from benchmarks.system import System, Upstream

# Work after an answer belongs to its run: audit completions are collected for up to 20 ms.
SETTLE_S = 0.1


@attrs.define
class Costs:
    """CPU seconds by process; complete once the block of `measure` has been left."""

    cpu_s: Mapping[str, float] = attrs.Factory(dict)
    own_s: float = 0.0
    """The system's processes together."""


@contextmanager
def measure(system: System, upstream: Upstream) -> Iterator[Costs]:
    """Count the CPU time of the block, and of the work that follows it within SETTLE_S."""
    costs = Costs()
    time.sleep(SETTLE_S)
    own, others = CpuMeter(system.processes), CpuMeter(upstream.processes)
    yield costs
    time.sleep(SETTLE_S)
    spent = own.read()
    costs.own_s = sum(spent.values())
    costs.cpu_s = {**spent, **others.read()}
