"""The workloads, one a module, by the name that the command line knows them by."""

from __future__ import annotations

from benchmarks.workload import Workload
from benchmarks.workloads import (
    beside,
    bulk,
    connections,
    exec,
    hop,
    idle,
    kubectl,
    memory,
    rate,
    rtt,
    scale,
    small,
    stalled,
    starts,
    watch,
    writes,
)

WORKLOADS: dict[str, tuple[Workload, ...]] = {
    "small": small.WORKLOADS,
    "writes": writes.WORKLOADS,
    "starts": (starts.START, connections.CONNECTIONS, rate.RATE),
    "bulk": bulk.WORKLOADS,
    "beside": beside.WORKLOADS,
    "stalled": stalled.WORKLOADS,
    "watch": watch.WORKLOADS,
    "exec": exec.WORKLOADS,
    "hop": hop.WORKLOADS,
    "idle": (*idle.WORKLOADS, scale.IDLE_TUNNELS),
    "memory": memory.WORKLOADS,
    "rtt": rtt.WORKLOADS,
    "kubectl": kubectl.WORKLOADS,
    "scale": (scale.SCALE, scale.SCALE_TWO),
}


BY_NAME: dict[str, tuple[Workload, ...]] = {
    **{workload.name: (workload,) for group in WORKLOADS.values() for workload in group},
    # A group's name is that of its first workload, and stands for all of them.
    **WORKLOADS,
}
"""What each name of the command line runs: a group, or one workload of a group."""
