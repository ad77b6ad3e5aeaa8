from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from tunnel.net.malloc import keep_large_buffers, trim_heap

# Page faults for 200 buffers of 256 KiB that are written to and dropped, with two at a time.
COUNT_FAULTS = """
import resource, sys
if sys.argv[1] == "kept":
    from tunnel.net.malloc import keep_large_buffers
    assert keep_large_buffers()
source = bytes(range(256)) * 1024
def work():
    for _ in range(200):
        one = source + b"x"
        other = one + source
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# MiB of memory that large buffers, gone now, have left between small ones that stay: before and after.
COUNT_HOLES = """
from tunnel.net.malloc import trim_heap, keep_large_buffers
assert keep_large_buffers()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20
before = resident()
large, small = [], []
for number in range(200):
    large.append(bytes([number]) * 262144)
    small.append(bytes([number]) * 10000)
del large
with_holes = resident()
assert trim_heap()
print(with_holes - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_buffers_cost_no_page_faults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, "kept"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a habit of glibc")
def test_what_large_buffers_leave_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_HOLES], capture_output=True, text=True, check=True)
    with_holes, after = map(float, done.stdout.split())
    assert with_holes > 40
    assert after < 10


@pytest.mark.parametrize("fault", [OSError, TypeError, AttributeError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, fault: type[Exception]) -> None:
    def no_library(name: str | None) -> ctypes.CDLL:
        raise fault

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert not keep_large_buffers()
    assert not trim_heap()


def test_a_library_without_the_mark_of_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_large_buffers()
    assert not trim_heap()
