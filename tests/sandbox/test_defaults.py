from __future__ import annotations

import base64

import pytest

from sandbox import defaults, kinds
from sandbox.kinds import Kind
from sandbox.objects import Json, Object, clone, items, lookup, mapping, text
from sandbox.status import StatusError

CONTAINER: Object = {"name": "c", "image": "i:1"}


def pod(*containers: Json, name: str = "p") -> Object:
    return {"metadata": {"name": name}, "spec": {"containers": [*containers]}}


def filled(kind: Kind, value: Object) -> Object:
    value = clone(value)
    defaults.fill(kind, value)
    return value


def complaint(kind: Kind, value: Object, previous: Object | None = None) -> str:
    with pytest.raises(StatusError) as caught:
        defaults.check(kind, value, previous)
    assert caught.value.code == 422
    return caught.value.message


def test_a_pod_gets_what_it_left_out() -> None:
    spec = mapping(filled(kinds.PODS, pod(CONTAINER, {"name": "d", "image": "host:5000/i"})), "spec")
    assert (spec["restartPolicy"], spec["serviceAccountName"]) == ("Always", "default")
    assert [container["imagePullPolicy"] for container in items(spec, "containers")] == [
        "IfNotPresent",
        "Always",
    ]


def test_filling_twice_changes_nothing_more() -> None:
    workload: Object = {"metadata": {"name": "d"}, "spec": {"template": pod(CONTAINER)}}
    service: Object = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}}
    namespace: Object = {"metadata": {"name": "n"}}
    for kind, value in (
        (kinds.PODS, pod(CONTAINER)),
        (kinds.DEPLOYMENTS, workload),
        (kinds.REPLICA_SETS, workload),
        (kinds.SERVICES, service),
        (kinds.NAMESPACES, namespace),
    ):
        once = filled(kind, value)
        assert filled(kind, once) == once


def test_other_kinds_get_what_they_left_out() -> None:
    deployment = filled(kinds.DEPLOYMENTS, {"metadata": {"name": "d"}, "spec": {"template": pod(CONTAINER)}})
    assert lookup(deployment, "spec", "replicas") == 1
    assert text(deployment, "spec", "strategy", "rollingUpdate", "maxSurge") == "25%"
    service = filled(kinds.SERVICES, {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})
    assert items(service, "spec", "ports") == [{"port": 80, "protocol": "TCP", "targetPort": 80}]
    secret = filled(kinds.SECRETS, {"metadata": {"name": "s"}, "stringData": {"a": "b"}})
    assert (mapping(secret, "data"), secret["type"], "stringData" in secret) == (
        {"a": base64.b64encode(b"b").decode()},
        "Opaque",
        False,
    )


@pytest.mark.parametrize(
    ("kind", "value", "part"),
    [
        (kinds.CONFIG_MAPS, {"metadata": {"name": "A"}}, "a lowercase RFC 1123 subdomain must consist"),
        (kinds.CONFIG_MAPS, {"metadata": {"name": "a" * 254}}, "metadata.name: Invalid value"),
        (kinds.NAMESPACES, {"metadata": {"name": "a.b"}}, "a lowercase RFC 1123 label must consist"),
        (kinds.ROLES, {"metadata": {"name": "a/b"}}, "may not contain '/' or '%'"),
        (kinds.PODS, pod(), "spec.containers: Required value"),
        (kinds.PODS, pod({"image": "i"}), "spec.containers[0].name: Required value"),
        (kinds.PODS, pod({"name": "c"}), "spec.containers[0].image: Required value"),
        (kinds.PODS, pod(CONTAINER, CONTAINER), 'spec.containers[1].name: Duplicate value: "c"'),
        (kinds.PODS, pod({**CONTAINER, "name": "C"}), "spec.containers[0].name: Invalid value"),
        (kinds.DEPLOYMENTS, {"metadata": {"name": "d"}}, "spec.selector: Required value"),
        (kinds.SERVICES, {"metadata": {"name": "s"}}, "spec.ports: Required value"),
        (
            kinds.SERVICES,
            {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 0}]}},
            "must be between 1 and 65535",
        ),
    ],
)
def test_what_no_one_could_mean(kind: Kind, value: Object, part: str) -> None:
    assert part in complaint(kind, value)


def test_names_that_are_good() -> None:
    for kind, name in (
        (kinds.CONFIG_MAPS, "a.b-c.1"),
        (kinds.ROLES, "system:Some Role"),
        (kinds.NAMESPACES, "a-1"),
    ):
        defaults.check(kind, {"metadata": {"name": name}}, None)


def test_what_cannot_be_changed_later() -> None:
    before = filled(kinds.PODS, pod(CONTAINER))
    image: Object = filled(kinds.PODS, pod({**CONTAINER, "image": "j"}))
    items(image, "spec", "containers")[0]["imagePullPolicy"] = "IfNotPresent"
    defaults.check(kinds.PODS, image, before)
    renamed = filled(kinds.PODS, pod({**CONTAINER, "args": ["x"]}))
    assert "pod updates may not change fields" in complaint(kinds.PODS, renamed, before)

    def binding(role: str) -> Object:
        return {"metadata": {"name": "b"}, "roleRef": {"name": role}}

    assert "cannot change roleRef" in complaint(kinds.ROLE_BINDINGS, binding("a"), binding("b"))
    fixed: Object = {"metadata": {"name": "c"}, "immutable": True, "data": {"a": "1"}}
    changed: Object = {**fixed, "data": {"a": "2"}}
    assert "field is immutable when" in complaint(kinds.CONFIG_MAPS, changed, fixed)
