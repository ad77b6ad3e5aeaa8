from __future__ import annotations

import pytest

from sandbox.objects import Object
from sandbox.status import StatusError
from sandbox.validation import pruned


def test_what_is_unknown_is_dropped_and_named_by_its_path() -> None:
    unknown: list[str] = []
    value: Object = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "p", "labels": {"any": "x"}, "nam": 1},
        "spec": {"containers": [{"name": "a"}, {"name": "b", "imag": "x"}], "replicas": 3},
    }
    assert pruned("Pod", value, unknown) == {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "p", "labels": {"any": "x"}},
        "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
    }
    assert unknown == ["metadata.nam", "spec.containers[1].imag", "spec.replicas"]


def test_nulls_are_as_good_as_absent() -> None:
    value: Object = {"metadata": {"creationTimestamp": None, "labels": {"a": None, "b": "c"}}, "data": None}
    assert pruned("ConfigMap", value, []) == {"metadata": {"labels": {"b": "c"}}}


def test_what_is_not_looked_into_stays() -> None:
    value: Object = {"metadata": {"managedFields": [{"fieldsV1": {"f:data": {".": {}}}}]}}
    assert pruned("ConfigMap", value, []) == value


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (
            {"spec": {"replicas": "3"}},
            "unmarshal string into Go struct field Deployment.spec.replicas of type int32",
        ),
        ({"spec": {"replicas": True}}, "unmarshal bool"),
        ({"spec": {"paused": 1}}, "unmarshal number"),
        ({"spec": []}, "unmarshal array into Go struct field Deployment.spec of type DeploymentSpec"),
        ({"metadata": {"labels": {"a": 1}}}, "Deployment.metadata.labels.a of type string"),
        ({"metadata": {"labels": "a"}}, "of type map[string]string"),
        ({"metadata": {"finalizers": "a"}}, "of type []string"),
    ],
)
def test_a_wrong_type_is_refused(value: Object, field: str) -> None:
    with pytest.raises(StatusError) as caught:
        pruned("Deployment", value, [])
    assert caught.value.code == 400
    assert field in caught.value.message


def test_amounts_may_be_numbers_and_become_text() -> None:
    value: Object = {
        "spec": {"containers": [{"name": "a", "resources": {"limits": {"cpu": 2, "memory": "1Gi"}}}]}
    }
    assert "'cpu': '2'" in str(pruned("Pod", value, []))
