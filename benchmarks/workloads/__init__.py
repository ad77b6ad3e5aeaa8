"""The workloads, one a module, by the name that the command line knows them by."""

from __future__ import annotations

from benchmarks.workload import Workload
from benchmarks.workloads import beside, bulk, cold, exec, idle, rtt, scale, small, stalled, watch

WORKLOADS: dict[str, tuple[Workload, ...]] = {
    "small": small.WORKLOADS,
    "bulk": bulk.WORKLOADS,
    "beside": beside.WORKLOADS,
    "stalled": stalled.WORKLOADS,
    "watch": watch.WORKLOADS,
    "exec": exec.WORKLOADS,
    "idle": (*idle.WORKLOADS, scale.IDLE_TUNNELS),
    "rtt": rtt.WORKLOADS,
    "cold": cold.WORKLOADS,
    "scale": (scale.SCALE, scale.SCALE_TWO),
}
