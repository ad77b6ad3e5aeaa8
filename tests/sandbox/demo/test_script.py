from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.demo.processes import DemoError
from sandbox.demo.program import Program
from sandbox.demo.scene import PROSE_COLUMNS, Scene, Show, Step, expect, prose
from sandbox.demo.script import STEPS, run_script

SCENE = Scene(Program(("kubectl",), {}), Program(("hawse",), {}), "robot", "demo", "acme", 8080, Path())


def right(scene: Scene, show: Show) -> None:
    show("$ kubectl auth whoami")
    show(f"{scene.agent_user}\n{scene.agent_group}\n")


def wrong(_: Scene, show: Show) -> None:
    show("$ kubectl get pods")
    expect("what came", "what must come")


TWO = (Step("right", "an agent with a name", right), Step("wrong", "never true", wrong))


def test_a_step_shows_its_command_its_output_and_what_that_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(TWO[:1], SCENE) == []
    assert capsys.readouterr().out.split("\n") == [
        "",
        "$ kubectl auth whoami",
        "  agent:robot",
        "  acme/demo",
        "ok      right         an agent with a name",
        "",
    ]


def test_a_wrong_step_is_named_and_the_others_still_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(TWO[::-1], SCENE) == ["wrong"]
    out = capsys.readouterr().out
    assert "FAILED  wrong         'what must come' is missing in the output: 'what came'\n" in out
    assert "never true" not in out
    assert out.endswith("ok      right         an agent with a name\n")


def test_expect_names_what_is_missing() -> None:
    expect("one and two", "one", "two")
    with pytest.raises(DemoError, match="'three' is missing"):
        expect("one and two", "one", "three")


def test_prose_fits_a_terminal_and_keeps_its_words() -> None:
    text = "Error from server (Forbidden): " + " ".join(["delete-of-pods"] * 20)
    lines = prose(text).splitlines()
    assert max(map(len, lines)) <= PROSE_COLUMNS
    assert " ".join(map(str.strip, lines)) == text


def test_the_steps_are_told_apart_and_their_meanings_fit_a_terminal() -> None:
    assert len({step.name for step in STEPS}) == len(STEPS)
    assert max(len(step.verdict) for step in STEPS) <= 80
