from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.demo.script import run_script
from sandbox.demo.steps import STEPS, Kubectl, Scene, Step, StepFailedError, expect

SCENE = Scene(Kubectl(Path("kubeconfig"), {}), "agent:robot", "acme/demo", 8080)


def right(scene: Scene) -> str:
    return f"seen as {scene.agent_user}"


def wrong(_: Scene) -> str:
    expect("what came", "what must come")
    return "not reached"


TWO = (Step("right", "kubectl get this", right), Step("wrong", "kubectl get that", wrong))


def test_a_wrong_step_is_counted_and_the_others_still_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(TWO[::-1], SCENE, lambda: ["an event"], brief=True) == 1
    assert capsys.readouterr().out.splitlines() == [
        "FAILED  wrong         'what must come' is missing in the output: 'what came'",
        "ok      right         seen as agent:robot",
    ]


def test_commands_and_the_trail_are_shown_unless_it_is_to_be_brief(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_script(TWO[:1], SCENE, lambda: ["an event"], brief=False) == 0
    assert capsys.readouterr().out.split("\n") == [
        "",
        "        $ kubectl get this",
        "ok      right         seen as agent:robot",
        "        | an event",
        "",
    ]


def test_expect_names_what_is_missing() -> None:
    expect("one and two", "one", "two")
    with pytest.raises(StepFailedError, match="'three' is missing"):
        expect("one and two", "one", "three")


def test_the_steps_are_told_apart() -> None:
    assert len({step.name for step in STEPS}) == len(STEPS)
