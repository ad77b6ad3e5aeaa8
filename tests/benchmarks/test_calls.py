from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.calls import BASELINE, CONNECTIONS, HOOK, counted
from benchmarks.system import Endpoint, System

PROGRAM = """
import sys

def called():
    len(())

for line in sys.stdin:
    for _ in range(int(line)):
        called()
    print("done", flush=True)
"""


@pytest.fixture
def program(tmp_path: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(HOOK), "HAWSE_COUNTED": str(tmp_path / "counted")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_the_calls_of_a_block_are_counted_and_no_others(
    program: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert program.stdin is not None
    assert program.stdout is not None
    with program, program.stdin:

        def call(times: int) -> None:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(f"{times}\n")
            program.stdin.flush()
            assert program.stdout.readline() == "done\n"

        call(5)
        system = System("it", Endpoint("127.0.0.1", 1, Path("ca.pem")), {"it": program.pid})
        for times in (3, 4):
            with counted(system, tmp_path / "counted") as counts:
                call(times)
            call(6)
            assert counts.by_process["it"]["called"] == times
            assert counts.by_process["it"]["len (C)"] == times


def test_a_program_that_is_not_counted_keeps_its_signals() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL)"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HOOK)},
    )
    assert shown.stdout == "True\n"


def test_the_committed_baseline_has_every_line() -> None:
    others = "a connection", "a MB down"
    lines = [f"a request, {connections} at once" for connections in CONNECTIONS]
    expected = {f"{process}, {line}" for process in ("hub", "relay") for line in (*lines, *others)}
    assert set(json.loads(BASELINE.read_text())) == expected
