from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from sandbox.demo import live
from sandbox.demo.live import Load, Shell
from sandbox.demo.processes import DemoError
from sandbox.demo.program import Program
from sandbox.demo.scene import Scene

SH = Program(("sh", "-c"), {})


def scene(script: str) -> Scene:
    """A scene whose kubectl is a shell that runs this script, with kubectl's arguments as $0, $1, …"""
    return Scene(Program(("sh", "-c", script), {}), SH, "robot", "demo", "acme", 1, Path("none"))


def test_a_shell_answers_and_leaves() -> None:
    with SH.started("while read line; do echo got $line; done", stdin=subprocess.PIPE) as process:
        shell = Shell(process)
        assert shell.say("one") < 5
        assert shell.say("two") < 5
        shell.leave()


@pytest.mark.parametrize("script", ["read line; echo no such stream >&2; exit 1", "read line; echo other"])
def test_a_shell_that_is_cut_or_answers_something_else_is_an_error(script: str) -> None:
    with SH.started(script, stdin=subprocess.PIPE) as process, pytest.raises(DemoError, match="was cut"):
        Shell(process).say("one")


def test_a_shell_that_was_cut_before_a_line_is_an_error() -> None:
    with SH.started("exec <&-; echo no such stream >&2", stdin=subprocess.PIPE) as process:
        process.wait(10)
        with pytest.raises(DemoError, match="was cut: no such stream"):
            Shell(process).say("one")


def test_a_shell_that_does_not_end_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "COMMAND_DEADLINE_S", 0.01)
    with SH.started("exec sleep 60", stdin=subprocess.PIPE) as process:
        with pytest.raises(DemoError, match="has not ended"):
            Shell(process).leave()


def test_a_shell_that_ends_with_an_error_is_one() -> None:
    with SH.started("cat; echo lost >&2; exit 3", stdin=subprocess.PIPE) as process:
        with pytest.raises(DemoError, match="exit code 3: lost"):
            Shell(process).leave()


def run_load(script: str, output: str | None) -> Load:
    load = Load(scene(script))
    load.start("get", output=output)
    until = time.monotonic() + 10
    while load.runs < 3:
        assert time.monotonic() < until
        time.sleep(0.005)
    load.stop()
    return load


def test_commands_run_again_and_again_and_failures_are_kept() -> None:
    assert run_load("echo fine", "fine\n").failures == []
    assert "exit code 1" in run_load("echo gone >&2; exit 1", None).failures[0]
    assert run_load("echo half", "whole\n").failures[0] == "kubectl get printed 'half\\n'"
