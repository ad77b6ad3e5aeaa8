from __future__ import annotations

from typing import Any

import pytest
import yaml

from sandbox.demo.operator_steps import POLICY, RULE, check_trail
from sandbox.demo.processes import DemoError

ROBOT = {"type": "agent", "name": "robot"}
OPERATOR = {"type": "operator", "name": "local"}
POLICY_NAME, RULE_ID = RULE.split("/")
WHOLE: list[dict[str, Any]] = [
    {
        "eid": "1",
        "kind": "call",
        "phase": "complete",
        "actor": ROBOT,
        "decision": {"effect": "deny", "policy": POLICY_NAME, "rule": RULE_ID},
    },
    {"eid": "2", "kind": "call", "phase": "intent", "actor": ROBOT},
    {
        "eid": "3",
        "kind": "admin.action",
        "phase": "complete",
        "actor": OPERATOR,
        "req": {"raw_target": "/v1/agents/robot/lock"},
    },
    {"eid": "2", "kind": "session.killed", "phase": "complete", "actor": ROBOT},
]


def test_a_trail_with_everything_passes() -> None:
    check_trail(WHOLE, "robot")


@pytest.mark.parametrize(
    ("without", "lacks"),
    [(0, "the denial"), (2, "the lock"), (3, "the exec that the lock ended")],
)
def test_a_trail_that_lacks_an_event_fails(without: int, lacks: str) -> None:
    with pytest.raises(DemoError, match=f"the trail lacks {lacks}"):
        check_trail([event for number, event in enumerate(WHOLE) if number != without], "robot")


def test_a_call_without_an_outcome_fails() -> None:
    with pytest.raises(DemoError, match="the trail has no outcome of 4"):
        check_trail([*WHOLE, {"eid": "4", "kind": "call", "phase": "intent", "actor": ROBOT}], "robot")


def test_the_policy_is_the_one_that_the_steps_look_for() -> None:
    policy = yaml.safe_load(POLICY)
    [rule] = policy["spec"]["rules"]
    assert f"{policy['metadata']['name']}/{rule['id']}" == RULE
    assert rule["effect"] == "deny"
