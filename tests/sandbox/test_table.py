from __future__ import annotations

import pytest

from sandbox import kinds, table
from sandbox.kinds import Kind
from sandbox.objects import Json, Object, items, now
from sandbox.storage import Item


def cells(kind: Kind, value: Object) -> dict[str, Json]:
    rendered = table.render(kind, [Item(value, 1)], {}, version="v1", include="None")
    [row] = items(rendered, "rows")
    shown = row["cells"]
    assert isinstance(shown, list)
    names = [column.name for column in table.columns_of(kind)]
    return dict(zip(names, shown, strict=True))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (599, "9m59s"),
        (600, "10m"),
        (3 * 3600 - 1, "179m"),
        (3 * 3600, "3h"),
        (3 * 3600 + 60, "3h1m"),
        (8 * 3600, "8h"),
        (48 * 3600 - 1, "47h"),
        (48 * 3600, "2d"),
        (51 * 3600, "2d3h"),
        (8 * 86400, "8d"),
        (729 * 86400, "729d"),
        (730 * 86400, "2y"),
        (731 * 86400, "2y1d"),
        (8 * 365 * 86400, "8y"),
    ],
)
def test_durations_as_kubectl_says_them(seconds: int, shown: str) -> None:
    assert table.duration(seconds) == shown


def pod(phase: str = "Running", *states: Object, **status: Json) -> Object:
    statuses: list[Json] = [
        {"name": str(n), "ready": "running" in state, "state": state} for n, state in enumerate(states)
    ]
    containers: list[Json] = [{"name": str(n)} for n in range(len(states))]
    return {
        "metadata": {"name": "p", "creationTimestamp": now()},
        "spec": {"containers": containers, "nodeName": "n"},
        "status": {"phase": phase, "containerStatuses": statuses, **status},
    }


RUNNING: Object = {"running": {}}


@pytest.mark.parametrize(
    ("value", "status", "ready"),
    [
        (pod("Pending"), "Pending", "0/0"),
        (pod("Running", RUNNING, RUNNING), "Running", "2/2"),
        (pod("Running", RUNNING, {"waiting": {"reason": "CrashLoopBackOff"}}), "CrashLoopBackOff", "1/2"),
        (pod("Failed", {"terminated": {"exitCode": 3}}), "ExitCode:3", "0/1"),
        (pod("Succeeded", {"terminated": {"exitCode": 0, "reason": "Completed"}}), "Completed", "0/1"),
        (pod("Running", {"terminated": {"reason": "Completed"}}, RUNNING), "NotReady", "1/2"),
        (pod("Failed", reason="Evicted"), "Evicted", "0/0"),
    ],
)
def test_a_pods_state_in_a_word(value: Object, status: str, ready: str) -> None:
    shown = cells(kinds.PODS, value)
    assert (shown["Status"], shown["Ready"], shown["Node"]) == (status, ready, "n")


def test_a_pod_on_its_way_out_is_terminating() -> None:
    value = pod("Running", RUNNING)
    value["metadata"] = {"name": "p", "deletionTimestamp": now()}
    assert cells(kinds.PODS, value)["Status"] == "Terminating"


def test_the_columns_of_other_kinds() -> None:
    service: Object = {
        "metadata": {"name": "s"},
        "spec": {
            "type": "NodePort",
            "clusterIP": "10.96.0.7",
            "selector": {"b": "2", "a": "1"},
            "ports": [{"port": 80, "nodePort": 30001, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
        },
    }
    shown = cells(kinds.SERVICES, service)
    assert (shown["Port(s)"], shown["Selector"], shown["External-IP"]) == (
        "80:30001/TCP,53/UDP",
        "a=1,b=2",
        "<none>",
    )
    binding: Object = {
        "metadata": {"name": "b"},
        "roleRef": {"kind": "Role", "name": "r"},
        "subjects": [
            {"kind": "User", "name": "u"},
            {"kind": "Group", "name": "g"},
            {"kind": "ServiceAccount", "name": "s", "namespace": "n"},
        ],
    }
    shown = cells(kinds.ROLE_BINDINGS, binding)
    assert [shown[name] for name in ("Role", "Users", "Groups", "ServiceAccounts")] == [
        "Role/r",
        "u",
        "g",
        "n/s",
    ]
    assert (
        cells(kinds.CONFIG_MAPS, {"metadata": {"name": "c"}, "data": {"a": "1"}, "binaryData": {"b": ""}})[
            "Data"
        ]
        == 2
    )
    assert cells(kinds.EVENTS, {"metadata": {"name": "e"}})["Last Seen"] == "<unknown>"


def test_every_stored_kind_has_columns_for_an_object_with_nothing_in_it() -> None:
    for kind in kinds.KINDS:
        if kind.stored:
            assert cells(kind, {"metadata": {"name": "x"}})["Name"] == "x"


def test_a_row_brings_as_much_of_its_object_as_is_wanted() -> None:
    item = Item({"metadata": {"name": "c"}, "data": {}}, 1)

    def brought(include: str) -> Json:
        rendered = table.render(kinds.CONFIG_MAPS, [item], {}, version="v1", include=include)
        [row] = items(rendered, "rows")
        return row.get("object")

    metadata: Object = {"name": "c"}
    assert brought("None") is None
    assert brought("Object") == {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": {}}
    assert brought("Metadata") == {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
    }


def test_later_tables_of_a_watch_have_no_columns() -> None:
    rendered = table.render(kinds.PODS, [], {}, version="v1", include="None", header=False)
    assert "columnDefinitions" not in rendered
