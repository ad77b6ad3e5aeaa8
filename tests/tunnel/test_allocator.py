from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from tunnel.allocator import keep_large_buffers

# Page faults for 200 buffers of 256 KiB that are written to and dropped, with two at a time.
COUNT_FAULTS = """
import resource, sys
if sys.argv[1] == "kept":
    from tunnel.allocator import keep_large_buffers
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_large_buffers_cost_no_page_faults() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, "kept"], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 50


@pytest.mark.parametrize("fault", [OSError, TypeError, AttributeError])
def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, fault: type[Exception]) -> None:
    def no_library(name: str | None) -> ctypes.CDLL:
        raise fault

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert not keep_large_buffers()


def test_a_library_without_the_mark_of_glibc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_large_buffers()
