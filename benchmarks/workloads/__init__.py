"""The workloads, one a module, by the name that the command line knows them by."""

from __future__ import annotations

from benchmarks.workload import Workload
from benchmarks.workloads import (
    beside,
    bulk,
    cold,
    connections,
    exec,
    idle,
    memory,
    rtt,
    scale,
    small,
    stalled,
    watch,
    writes,
)

WORKLOADS: dict[str, tuple[Workload, ...]] = {
    "small": small.WORKLOADS,
    "writes": writes.WORKLOADS,
    "connections": connections.WORKLOADS,
    "bulk": bulk.WORKLOADS,
    "beside": beside.WORKLOADS,
    "stalled": stalled.WORKLOADS,
    "watch": watch.WORKLOADS,
    "exec": exec.WORKLOADS,
    "idle": (*idle.WORKLOADS, scale.IDLE_TUNNELS),
    "memory": memory.WORKLOADS,
    "rtt": rtt.WORKLOADS,
    "cold": cold.WORKLOADS,
    "scale": (scale.SCALE, scale.SCALE_TWO),
}


BY_NAME: dict[str, tuple[Workload, ...]] = {
    **{workload.name: (workload,) for group in WORKLOADS.values() for workload in group},
    # A group's name is that of its first workload, and stands for all of them.
    **WORKLOADS,
}
"""What each name of the command line runs: a group, or one workload of a group."""
