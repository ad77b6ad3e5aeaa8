"""What a hop costs: the same requests by one hub on PostgreSQL, and over the link to a second one.

`second_to_first` is the CPU time of the second hub, over that of the first one in the same run. The first one
does what a single hub does: TLS, the token, the policy, the record. The second one splices.
"""

from __future__ import annotations

from typing import Final

import attrs

from benchmarks.result import Sample
from benchmarks.system import System, Upstream
from benchmarks.systems.hop import FIRST, SECOND
from benchmarks.systems.hop import NAME as HOP
from benchmarks.systems.postgres import NAME as ONE_HUB
from benchmarks.workload import Options, Workload
from benchmarks.workloads import bulk, exec, small, watch

# In the order of the tables: without a hop, and with one.
OPENS: Final = (ONE_HUB, HOP)


def hop(name: str, of: Workload, variants: tuple[int, ...] | None = None) -> Workload:
    """A workload over these systems, with the share of the second hub."""

    def run(system: System, upstream: Upstream, variant: int, options: Options) -> Sample:
        sample = of.run(system, upstream, variant, options)
        notes = dict(sample.notes)
        if SECOND in sample.cpu_s:
            notes["second_to_first"] = sample.cpu_s[SECOND] / sample.cpu_s[FIRST]
        named = attrs.evolve(sample.measurement, workload=name)
        return attrs.evolve(sample, measurement=named, notes=notes)

    return Workload(
        name, of.title, of.variants if variants is None else variants, run, frozenset(OPENS), opens=OPENS
    )


WORKLOADS = (
    hop("hop", small.SMALL),
    hop("hop-bulk", bulk.DOWN),
    hop("hop-bulk-up", bulk.UP),
    hop("hop-watch", watch.WATCH),
    hop("hop-watch-many", watch.MANY),
    hop("hop-exec", exec.WORKLOADS[0]),
)
