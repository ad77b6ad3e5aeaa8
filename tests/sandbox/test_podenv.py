from __future__ import annotations

import base64

import pytest

from sandbox.objects import Json, Object
from sandbox.podenv import Environment
from sandbox.storage import Store

POD: Object = {
    "metadata": {"name": "p", "namespace": "a", "labels": {"app": "x"}},
    "spec": {"nodeName": "n"},
    "status": {"podIP": "127.0.0.1"},
}


@pytest.fixture
def environment() -> Environment:
    store = Store()
    metadata: Object = {"name": "c", "namespace": "a"}
    store.collection("", "configmaps").put({"metadata": metadata, "data": {"k": "v", "l": "w"}})
    encoded = base64.b64encode(b"secret").decode()
    store.collection("", "secrets").put(
        {"metadata": {"name": "s", "namespace": "a"}, "data": {"k": encoded, "bad": "%"}}
    )
    return Environment(store.collection("", "configmaps"), store.collection("", "secrets"))


def of(environment: Environment, *env: Json, sources: tuple[Json, ...] = ()) -> dict[str, str]:
    return environment.of(POD, {"env": [*env], "envFrom": [*sources]})


def value_from(**source: Json) -> Object:
    return {"name": "X", "valueFrom": {**source}}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ({"name": "X", "value": "plain"}, "plain"),
        ({"name": "X"}, ""),
        (value_from(fieldRef={"fieldPath": "metadata.name"}), "p"),
        (value_from(fieldRef={"fieldPath": "status.podIP"}), "127.0.0.1"),
        (value_from(fieldRef={"fieldPath": "metadata.labels['app']"}), "x"),
        (value_from(fieldRef={"fieldPath": "metadata.labels['none']"}), None),
        (value_from(configMapKeyRef={"name": "c", "key": "k"}), "v"),
        (value_from(configMapKeyRef={"name": "c", "key": "none"}), None),
        (value_from(configMapKeyRef={"name": "none", "key": "k"}), None),
        (value_from(secretKeyRef={"name": "s", "key": "k"}), "secret"),
        (value_from(secretKeyRef={"name": "s", "key": "bad"}), ""),
        (value_from(resourceFieldRef={"resource": "limits.cpu"}), None),
    ],
)
def test_a_variable(environment: Environment, variable: Object, value: str | None) -> None:
    assert of(environment, variable).get("X") == value


def test_many_at_once_and_what_is_named_wins(environment: Environment) -> None:
    sources: tuple[Json, ...] = (
        {"configMapRef": {"name": "c"}},
        {"prefix": "S_", "secretRef": {"name": "s"}},
    )
    found = of(environment, {"name": "k", "value": "$(l)!"}, sources=sources)
    assert (found["k"], found["l"], found["S_k"]) == ("w!", "w", "secret")
