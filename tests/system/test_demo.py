"""The demo as it is run by `make demo`: right, wrong, and interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox.demo.script import STEPS
from tests.postgres import required_binaries

pytestmark = [pytest.mark.kubectl, pytest.mark.timeout(180)]

DEADLINE_S = 120.0
# The first step as it is, and another whose expectation the real output does not meet.
BROKEN = """
import sys
import sandbox.demo.__main__ as demo
from sandbox.demo.scene import Step, expect
from sandbox.demo.script import STEPS

def act(scene, show):
    expect(scene.kubectl.run("get", "pods")[0], "a pod of another name")

demo.STEPS = (STEPS[0], Step("broken", "never true", act))
sys.exit(demo.main())
"""
# One step, which holds an exec open until the demo ends, and a process that does not end with the hub.
HELD = """
import sys, time
import sandbox.demo.__main__ as demo
from sandbox.demo.cluster import POD
from sandbox.demo.program import Program, first_line
from sandbox.demo.scene import Step

def act(scene, show):
    with (
        Program(("sleep",), scene.kubectl.environment).started("600"),
        scene.kubectl.started("exec", POD, "--", "sh", "-c", "echo at work; exec sleep 600") as executing,
    ):
        show(first_line(executing))
        time.sleep(600)

demo.STEPS = (Step("held", "never true", act),)
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
    """The command lines of processes that name the folder, or whose environment does, or that work in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line, environment = (process / name for name in ("cmdline", "environ"))
            traces = line.read_bytes() + environment.read_bytes() + os.readlink(process / "cwd").encode()
            if str(folder).encode() in traces and process.name != str(os.getpid()):
                found.append(line.read_text(errors="replace"))
        except OSError:
            continue  # ended between the one look and the other
    return found


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """The lines up to the first that holds `text`, or to the end."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            break
    return lines


def test_every_step_is_right_and_nothing_is_left_running(tmp_path: Path) -> None:
    process = start(tmp_path / "demo", "-m", "sandbox.demo", "--once")
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, out
    right = [line for line in out.splitlines() if line.startswith("ok ")]
    assert len(right) == len(STEPS), out
    assert "FAILED" not in out
    assert "processes of this machine, not containers" in out
    for shown in (
        "$ kubectl delete pod workbench\n  Error from server (Forbidden): ",
        " is denied by keep/all: agents delete nothing",
        "$ hawse admin policy simulate policy.yaml\n",
        "$ hawse admin agent lock robot\n  error: ",
        "\n  Error from server (Forbidden): agent:robot is locked",
        "$ hawse audit list ",
    ):
        assert shown in out
    assert left_behind(tmp_path / "demo") == []


def test_a_step_that_goes_wrong_is_told_and_fails_the_demo_which_stays_up(tmp_path: Path) -> None:
    process = start(tmp_path / "demo", "-c", BROKEN)
    try:
        lines = read_until(process, "/signin#code=")
        assert process.poll() is None, lines
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)
    out = "".join(lines)
    assert process.returncode == 1, out
    assert "FAILED  broken        'a pod of another name' is missing in the output" in out
    assert "ok      whoami" in out
    assert "make demo: 1 of 2 steps failed: broken" in out
    [export] = [line for line in lines if "export KUBECONFIG=" in line]
    assert export.partition("=")[2].startswith(str(tmp_path / "demo"))
    assert left_behind(tmp_path / "demo") == []


def test_ctrl_c_ends_it_with_its_postgresql_and_an_exec_that_is_open(tmp_path: Path) -> None:
    required_binaries()
    process = start(tmp_path / "demo", "-c", HELD, "--database", "postgres")
    lines = read_until(process, "at work")
    config = (tmp_path / "demo" / "hub.toml").read_text()
    databases = Path(re.findall(r'^url = ".*\?host=(.*)"', config, re.MULTILINE)[0])
    servers = left_behind(databases)
    # The demo alone: in a terminal others get it as well, and end more easily.
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + signal.SIGINT, "".join([*lines, out])
    assert "make demo: interrupted" in out
    assert re.fullmatch(r"PostgreSQL \d+\S* from /\S+\n", lines[0])
    assert servers != []
    assert left_behind(tmp_path / "demo") == []
    assert left_behind(databases) == []
    assert not databases.exists()
