"""The kernel's accounts of a process: against what the process itself knows of its CPU time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.accounting import CpuMeter, cpu_s, family, rss_kb, total_rss_kb

# Burns CPU in a thread that then ends, says how much the process has used, and waits to be ended.
BURNER = """
import threading, time
def burn():
    until = time.thread_time() + 0.05
    while time.thread_time() < until: pass
thread = threading.Thread(target=burn)
thread.start()
thread.join()
print(time.process_time(), flush=True)
input()
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {BURNER!r}], stdin=subprocess.PIPE)
input()
child.kill()
child.wait()
"""


@contextmanager
def python(source: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.communicate("\n")


def said(process: subprocess.Popen[str]) -> float:
    assert process.stdout is not None
    return float(process.stdout.readline())


def test_the_time_of_a_thread_that_has_ended_is_counted() -> None:
    with python(BURNER) as process:
        told_s = said(process)
        assert told_s <= cpu_s(process.pid) < told_s + 0.05
        # Which the files under /proc/PID/task have not: the thread is gone from there.
        with open(f"/proc/{process.pid}/schedstat") as file:
            assert int(file.read().split()[0]) / 1e9 < told_s - 0.04


def test_our_own_clock_agrees() -> None:
    assert abs(cpu_s(os.getpid()) - time.process_time()) < 0.01


def test_a_process_that_is_gone_costs_nothing() -> None:
    with python("") as process:
        pass
    assert cpu_s(process.pid) == 0.0
    assert rss_kb(process.pid) == 0


def test_resident_memory_is_that_of_the_status_file() -> None:
    with python(BURNER) as process:
        said(process)
        with open(f"/proc/{process.pid}/status") as file:
            line = next(line for line in file if line.startswith("VmRSS:"))
        # The status file's count is kept loosely, by batches of pages.
        assert abs(rss_kb(process.pid) - int(line.split()[1])) < 512
        assert total_rss_kb({"it": process.pid}) == {"it": rss_kb(process.pid)}


def test_children_are_counted_with_their_parent() -> None:
    with python(PARENT) as parent:
        told_s = said(parent)
        members = family(parent.pid)
        assert len(members) == 2
        assert members[0] == parent.pid
        assert sum(cpu_s(pid) for pid in members) > told_s


def test_a_meter_counts_from_when_it_was_made() -> None:
    with python(BURNER) as process:
        told_s = said(process)
        meter = CpuMeter({"burner": process.pid})
        assert 0 <= meter.read()["burner"] < told_s


def test_a_child_that_starts_later_is_metered_from_its_start() -> None:
    meter = CpuMeter({"tests": os.getpid()})
    with python(BURNER) as process:
        told_s = said(process)
        assert meter.read()["tests"] >= told_s
