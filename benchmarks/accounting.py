"""CPU time and resident memory of processes, as the kernel accounts for them.

The CPU time is the scheduler's, in nanoseconds, as in /proc/PID/task/*/schedstat. It is read through the
process's CPU clock, which also counts threads that have ended and the time since the last tick. It contains
no wall time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")


def cpu_s(pid: int) -> float:
    """The CPU seconds of a process since its start, all threads; 0 when it is gone."""
    # clock_getcpuclockid(3), which Python does not have: the pid's complement, and CPUCLOCK_SCHED (2).
    clock = (~pid << 3) | 2
    try:
        return time.clock_gettime_ns(clock) / 1e9
    except OSError:
        return 0.0


def rss_kb(pid: int) -> int:
    """The resident memory of a process in KiB; 0 when it is gone."""
    try:
        rollup = (_PROC / str(pid) / "smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))


def family(pid: int) -> list[int]:
    """A process and its descendants: nginx's workers, the children of sshd."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # After the command's name, which may hold anything: "… (name) S 1234 …".
        parent = int(stat.rpartition(")")[2].split()[1])
        children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def families(processes: Mapping[str, int]) -> dict[str, list[int]]:
    """Each name's process with its descendants as they are now."""
    return {name: family(pid) for name, pid in processes.items()}


def total_rss_kb(processes: Mapping[str, int]) -> dict[str, int]:
    """The resident memory by name, descendants included."""
    return {name: sum(rss_kb(pid) for pid in pids) for name, pids in families(processes).items()}


class CpuMeter:
    """CPU seconds by name since it was made, descendants included.

    A descendant that starts later counts from its start; one that ends before `read` is not seen.
    """

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = processes
        self._before = {pid: cpu_s(pid) for pids in families(processes).values() for pid in pids}

    def read(self) -> dict[str, float]:
        return {
            name: sum(cpu_s(pid) - self._before.get(pid, 0.0) for pid in pids)
            for name, pids in families(self._processes).items()
        }
