"""The demo as it is run by `make demo`: right, wrong, and interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.demo.steps import STEPS

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

DEADLINE_S = 120.0
# The first step as it is, and another whose expectation the real output does not meet.
BROKEN = """
import sys
import sandbox.demo.__main__ as demo
from sandbox.demo.steps import STEPS, Step, expect

def act(scene):
    expect(scene.kubectl.run("get", "pods")[0], "a pod of another name")

demo.STEPS = (STEPS[0], Step("broken", "kubectl get pods", act))
sys.exit(demo.main())
"""


def start(folder: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *args, "--dir", str(folder), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_behind(folder: Path) -> list[str]:
    """The command lines of processes that name the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # ended between the one look and the other
        if str(folder) in line and path.parent.name != str(os.getpid()):
            found.append(line)
    return found


def test_every_step_is_right_and_nothing_is_left_running(tmp_path: Path) -> None:
    process = start(tmp_path / "demo", "-m", "sandbox.demo", "--once")
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out
    right = [line for line in out.splitlines() if line.startswith("ok ")]
    assert len(right) == len(STEPS), out
    assert "FAILED" not in out
    assert left_behind(tmp_path / "demo") == []


def test_a_step_that_goes_wrong_is_told_and_fails_the_demo(tmp_path: Path) -> None:
    process = start(tmp_path / "demo", "-c", BROKEN, "--once")
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1, out
    assert "FAILED  broken        'a pod of another name' is missing in the output" in out
    assert "ok      whoami" in out
    assert left_behind(tmp_path / "demo") == []


def test_it_stays_up_until_it_is_interrupted_and_leaves_nothing_running(tmp_path: Path) -> None:
    process = start(tmp_path / "demo", "-m", "sandbox.demo")
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "audit list --follow" in line:
                break
        assert process.poll() is None, lines
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert [line for line in lines if "intent   agent:robot" in line], "the trail is not shown"
    [export] = [line for line in lines if "export KUBECONFIG=" in line]
    assert export.partition("=")[2].startswith(str(tmp_path / "demo"))
    assert left_behind(tmp_path / "demo") == []
