from __future__ import annotations

import pytest

from sandbox import status
from sandbox.status import GroupResource

PODS = GroupResource("", "pods")
DEPLOYMENTS = GroupResource("apps", "deployments")


def test_a_missing_object_is_named_with_its_group() -> None:
    assert status.not_found(DEPLOYMENTS, "web").to_json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": 'deployments.apps "web" not found',
        "reason": "NotFound",
        "details": {"name": "web", "group": "apps", "kind": "deployments"},
        "code": 404,
    }


@pytest.mark.parametrize(
    ("what", "name", "message"),
    [
        (PODS, "", "pods is forbidden: why"),
        (PODS, "p", 'pods "p" is forbidden: why'),
        (GroupResource("", ""), "", "forbidden: why"),
    ],
)
def test_the_three_forms_of_forbidden(what: GroupResource, name: str, message: str) -> None:
    assert status.forbidden(what, name, "why").message == message


def test_one_fault_stands_alone_and_several_in_brackets() -> None:
    first, second = status.missing_field("spec.a"), status.invalid_field("spec.b", 3, "too much")
    assert status.invalid("", "Pod", "p", [first]).message == 'Pod "p" is invalid: spec.a: Required value'
    error = status.invalid("apps", "Deployment", "d", [first, second])
    assert error.message == (
        'Deployment.apps "d" is invalid: [spec.a: Required value, spec.b: Invalid value: 3: too much]'
    )
    assert error.details is not None
    assert error.details["causes"] == [
        {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.a"},
        {"reason": "FieldValueInvalid", "message": "Invalid value: 3: too much", "field": "spec.b"},
    ]


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("plain", '"plain"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("tab\tü\x01", '"tab\\tü\\x01"'),
        ("\u200b", '"\\u200b"'),
    ],
)
def test_quotes_are_those_of_go(value: str, quoted: str) -> None:
    assert status.quote(value) == quoted
