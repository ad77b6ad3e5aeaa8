"""The interface between the runner and workloads/.

A workload's module has a tuple `WORKLOADS`. The runner measures each variant in several rounds. A round runs
all systems, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import attrs

from benchmarks.result import Sample
from benchmarks.system import System, Upstream


@attrs.frozen
class Options:
    """What the command line says about the runs."""

    runs: int = 5
    seconds: float = 1.0
    """How long a run lasts. Below 1, a run of a certain size or length is cut to that share of it."""
    quick: bool = False
    """Sizes cut to what shows that everything works; the figures are not to be compared."""


OpenRuns = Callable[[System, Upstream, int, Options], AbstractContextManager[Callable[[], Sample]]]
"""Opens connections and yields a function that measures one short run over them; it may be called again."""


@attrs.frozen
class Workload:
    """One question, asked for several numbers of connections or streams."""

    name: str
    title: str
    """One sentence for `--help` and the results."""
    variants: tuple[int, ...]
    run: Callable[[System, Upstream, int, Options], Sample]
    """One short run. Raises RunFailed when the system did not do what was asked."""
    systems: frozenset[str] | None = None
    """The systems it makes sense for; all of them when None."""
    opens: tuple[str, ...] = ()
    """The systems of EXTRA that it runs over without being told; those that run always do not run for it."""
    runs: int | None = None
    """Rounds, where the number of the command line makes no sense."""
    open: OpenRuns | None = None
    """For the gate: the same run, repeated over connections that stay up."""


def once(open_runs: OpenRuns) -> Callable[[System, Upstream, int, Options], Sample]:
    """A workload's `run` over connections of its own."""

    def run(system: System, upstream: Upstream, variant: int, options: Options) -> Sample:
        with open_runs(system, upstream, variant, options) as measured:
            return measured()

    return run


class RunFailed(Exception):
    """A run without a figure: an answer was refused, cut or missing. The text says which."""
