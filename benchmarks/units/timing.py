"""CPU time of small things: the minimum and the median of several short runs, in µs.

Process time, not wall time: it counts every thread, and the load of the machine least of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

RUNS = 7


def once(work: Callable[[], object], calls: int) -> float:
    """CPU µs a call of one run; `work` makes all the calls of a run."""
    began_s = time.process_time()
    work()
    return (time.process_time() - began_s) * 1e6 / calls


def repeated(function: Callable[[], object], calls: int) -> Callable[[], None]:
    """A run that calls the function so many times."""

    def work() -> None:
        for _ in range(calls):
            function()

    return work


def report(name: str, runs_us: list[float]) -> float:
    """Print a line of figures; returns the median."""
    middle = median(runs_us)
    print(f"{name:<44} {middle:8.2f} µs   (least {min(runs_us):.2f})")
    return middle


def measure(name: str, function: Callable[[], object], calls: int = 5000) -> float:
    """Measure a function that is called without arguments; prints and returns the median."""
    work = repeated(function, calls)
    return report(name, [once(work, calls) for _ in range(RUNS)])
