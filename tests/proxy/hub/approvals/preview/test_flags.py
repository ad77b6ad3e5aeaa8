"""What deserves attention is said in words of a closed list."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.policy.ask import Ask
from auth.requestinfo import parse
from proxy.hub.approvals.preview.bodies import Body
from proxy.hub.approvals.preview.findings import NOT_HONOURED, Findings
from proxy.hub.approvals.preview.flags import Flag
from proxy.hub.approvals.preview.words import made_for

SHOP = "/namespaces/shop"
WEB = f"/apis/apps/v1{SHOP}/deployments/web"
PODS = f"/api/v1{SHOP}/pods"


def findings(line: str, body: object = None) -> Findings:
    method, target = line.split(" ")
    data = b"" if body is None else json.dumps(body).encode()
    return Findings(parse(method.encode(), target.encode()), Ask(("any",)), Body.of(data), bytes(16))


def flags(line: str, body: object = None) -> tuple[str, ...]:
    return findings(line, body).not_tried(NOT_HONOURED).view.flags


def pod_of(**spec: object) -> dict[str, Any]:
    return {"spec": {"template": {"spec": spec}}}


@pytest.mark.parametrize(
    ("line", "body", "found"),
    [
        ("DELETE /api/v1/namespaces/shop", None, [Flag.NAMESPACE]),
        ("DELETE /apis/apiextensions.k8s.io/v1/customresourcedefinitions/x", None, [Flag.DEFINITION]),
        ("POST /apis/rbac.authorization.k8s.io/v1/clusterroles", {}, [Flag.RBAC]),
        (f"DELETE /apis/rbac.authorization.k8s.io/v1{SHOP}/roles/r", None, [Flag.RBAC]),
        (
            "PUT /apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/w",
            {},
            [Flag.WEBHOOK],
        ),
        (
            "PUT /apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/w",
            {},
            [Flag.ADMISSION_POLICY],
        ),
        ("POST /apis/apiregistration.k8s.io/v1/apiservices", {}, [Flag.API_SERVICE]),
        (f"POST /api/v1{SHOP}/serviceaccounts/s/token", {}, [Flag.TOKEN]),
        (f"POST /api/v1{SHOP}/serviceaccounts", {}, [Flag.SERVICE_ACCOUNT]),
        ("POST /api/v1/persistentvolumes", {}, [Flag.VOLUME]),
        (f"DELETE /api/v1{SHOP}/persistentvolumeclaims/c", None, [Flag.VOLUME_DATA]),
        (f"DELETE {PODS}/p?gracePeriodSeconds=0", None, [Flag.AT_ONCE]),
        (f"DELETE {PODS}/p?gracePeriodSeconds=0", {"kind": "DeleteOptions"}, []),
        (f"DELETE {PODS}/p", {"gracePeriodSeconds": 0}, [Flag.AT_ONCE]),
        (f"DELETE {WEB}", {"propagationPolicy": "Orphan"}, [Flag.ORPHANS]),
        (f"DELETE {PODS}/p?gracePeriodSeconds=-00", None, [Flag.AT_ONCE]),
        (f"DELETE {PODS}/p?gracePeriodSeconds=x", None, []),
        (f"DELETE {WEB}?orphanDependents=true", None, [Flag.ORPHANS]),
        (f"DELETE {WEB}?orphanDependents=1", None, [Flag.ORPHANS]),
        (f"DELETE {WEB}?orphanDependents", None, [Flag.ORPHANS]),
        (f"DELETE {WEB}?orphanDependents=False", None, []),
        (f"DELETE {WEB}", {"orphanDependents": True}, [Flag.ORPHANS]),
        (f"PATCH {WEB}?force=true", {}, [Flag.FORCE]),
        (f"PATCH {WEB}?force=false", {}, []),
        (f"PATCH {WEB}?force=0", {}, []),
        (f"PATCH {WEB}?force", {}, [Flag.FORCE]),
        (f"PATCH {WEB}?force=f", {}, [Flag.FORCE]),
        (f"PATCH {WEB}?f%6Frce=1", {}, [Flag.FORCE]),
        (f"PATCH {WEB}", {"spec": {"replicas": 0}}, [Flag.TO_ZERO]),
        (f"PATCH {WEB}", {"spec": {"replicas": False}}, []),
        (f"PATCH {WEB}/scale", [{"op": "replace", "path": "/spec/replicas", "value": 0}], [Flag.TO_ZERO]),
        (f"PATCH {WEB}", pod_of(containers=[{"securityContext": {"privileged": True}}]), [Flag.PRIVILEGED]),
        (f"PATCH {WEB}", pod_of(containers=[{"securityContext": {"privileged": False}}]), []),
        (f"PATCH {WEB}", pod_of(hostNetwork=True), [Flag.HOST_NETWORK]),
        (f"PATCH {WEB}", pod_of(hostPID=True), [Flag.HOST_PROCESSES]),
        (f"PATCH {WEB}", pod_of(volumes=[{"hostPath": {"path": "/"}}]), [Flag.HOST_PATH, Flag.VOLUME]),
        (f"PATCH {WEB}", pod_of(volumes=[{"emptyDir": {}}]), [Flag.VOLUME]),
        (
            f"PATCH {WEB}",
            pod_of(containers=[{"securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]),
            [Flag.CAPABILITIES],
        ),
        (f"PATCH {WEB}", pod_of(serviceAccountName="admin"), [Flag.SERVICE_ACCOUNT]),
        (f"PATCH {WEB}", pod_of(serviceAccountName="default"), [Flag.SERVICE_ACCOUNT]),
        (f"POST {PODS}", {"spec": {"serviceAccountName": "admin"}}, [Flag.SERVICE_ACCOUNT]),
        # The API server writes it into each pod.
        (f"POST {PODS}", {"spec": {"serviceAccountName": "default", "serviceAccount": "default"}}, []),
        (f"PATCH {WEB}", {"metadata": {"finalizers": None}}, [Flag.FINALIZERS]),
        (
            f"PATCH {WEB}",
            [
                {
                    "op": "add",
                    "path": "/spec/template/spec/containers/0/securityContext/privileged",
                    "value": True,
                }
            ],
            [Flag.PRIVILEGED],
        ),
        (f"PATCH {WEB}", [{"op": "test", "path": "/spec/replicas", "value": 0}], []),
        (f"PATCH {WEB}", {"metadata": {"labels": {"a": "b"}}}, []),
    ],
)
def test_flags(line: str, body: object, found: list[Flag]) -> None:
    assert list(flags(line, body)) == list(map(str, found))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(0, 1) | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["spec", "op", "path", "value", "hostPath", "replicas"]), inner)
        ),
    )
)
def test_flags_of_any_body_are_of_the_list(body: object) -> None:
    assert set(flags(f"PATCH {WEB}", body)) <= set(map(str, Flag))


def test_only_what_changes_is_flagged() -> None:
    before: Any = pod_of(hostNetwork=True, serviceAccountName="a")
    after: Any = pod_of(hostNetwork=True, serviceAccountName="b")
    view = findings(f"PATCH {WEB}").tried(before, after, after).view
    assert view.flags == (str(Flag.SERVICE_ACCOUNT),)


@pytest.mark.parametrize(
    ("path", "kinds"),
    [
        ("/apis/apps/v1/namespaces/a/deployments/w", ["replicasets", "pods"]),
        ("/apis/batch/v1/namespaces/a/cronjobs/w", ["jobs", "pods"]),
        ("/api/v1/namespaces/a/configmaps/c", []),
        ("/api/v1/namespaces/a", []),
        ("/api/v1/nodes/n", []),
        ("/apis/argoproj.io/v1/namespaces/a/rollouts/r", ["replicasets", "jobs", "pods"]),
    ],
)
def test_the_lists_of_what_may_belong_to_an_object(path: str, kinds: list[str]) -> None:
    assert [resource for _, resource in made_for(parse(b"DELETE", path.encode()))] == kinds


@pytest.mark.parametrize(
    ("line", "body", "summary"),
    [
        (f"POST {PODS}", {"kind": "Pod", "metadata": {"name": "p"}}, "creates Pod p"),
        (f"POST {PODS}", {"metadata": {"generateName": "p-"}}, "creates Pod with a name that begins with p-"),
        ("POST /api/v1/namespaces/a/serviceaccounts/s/token", {}, "creates token of serviceaccounts s"),
        (f"PUT {WEB}/status", {}, "changes Deployment web (status)"),
        (
            "POST /api/v1/namespaces/a/services/s/proxy/x",
            {},
            "sends POST to services s through the API server",
        ),
        ("POST /foo", {}, "sends POST to /foo"),
        (
            f"POST {PODS}",
            {"kind": "\u202ePod", "metadata": {"name": "\u202ep\x1b"}},
            "creates Pod \\u202ep\\u001b",
        ),
    ],
)
def test_summaries(line: str, body: object, summary: str) -> None:
    assert findings(line, body).not_tried(NOT_HONOURED).view.summary == summary


@pytest.mark.parametrize(
    ("line", "summary"),
    [
        (f"POST {PODS}/p/attach?container=c", "attaches to Pod p (container c)"),
        (f"POST {PODS}/p/portforward", "forwards ports of Pod p"),
        (f"POST {PODS}/p/eviction", "evicts Pod p"),
        (f"GET {PODS}/p/exec?command=a%20b&command=%E2%80%AE", "runs `'a b' '\\u202e'` in Pod p"),
    ],
)
def test_summaries_of_calls_to_a_pod(line: str, summary: str) -> None:
    assert findings(line).reached_unseen("x").view.summary == summary


def test_an_eviction_shows_its_options() -> None:
    body: Any = {"kind": "Eviction", "metadata": {"name": "p"}, "deleteOptions": {"gracePeriodSeconds": 0}}
    view = findings(f"POST {PODS}/p/eviction", body).reached({"metadata": {"uid": "u"}}).view
    assert view.flags == (str(Flag.AT_ONCE),)
    assert view.notes == ('options: {"deleteOptions": {"gracePeriodSeconds": 0}}',)
    unseen = findings(f"POST {PODS}/p/eviction", body).reached_unseen("x").view
    assert (unseen.flags, unseen.notes) == (view.flags, ("x", *view.notes))


def test_a_body_of_options_that_cannot_be_read_is_said_to_be_hidden() -> None:
    info = parse(b"DELETE", f"{PODS}/p".encode())
    found = Findings(info, Ask(("any",)), Body.of(b"k8s\0protobuf"), bytes(16))
    note = "its options, in a body of 12 bytes, are not shown: it is no JSON"
    assert found.deleted({"metadata": {"uid": "u"}}, []).view.notes == (note,)
    assert found.deleted_unseen("x").view.notes == ("x", note)
    assert found.deleted_many({"items": []}).view.notes == (note,)


@pytest.mark.parametrize(
    ("line", "notes"),
    [
        (f"DELETE {WEB}?propagationPolicy=Foreground", ("with propagationPolicy=Foreground",)),
        (f"DELETE {WEB}?x=%E2%80%AE&y=a%26b=c%3Dd", ("with x=\\u202e&y=a%26b=c%3Dd",)),
        (f"DELETE {WEB}?timeout=1s&fieldManager=a&fieldValidation=Strict", ()),
        (f"DELETE {WEB}", ()),
    ],
)
def test_the_parameters_of_a_deletion_are_shown(line: str, notes: tuple[str, ...]) -> None:
    assert findings(line).deleted({"metadata": {"uid": "u"}}, []).view.notes == notes
    assert findings(line).deleted_unseen("y").view.notes == ("y", *notes)


@pytest.mark.parametrize(
    ("line", "note"),
    [
        (
            "POST /api/v1/namespaces/a/services/s:80/proxy/admin/drop?all=1",
            "the target is /api/v1/namespaces/a/services/s:80/proxy/admin/drop?all=1",
        ),
        ("PUT /api/v1/proxy/nodes/n/run?cmd=x", "the target is /api/v1/proxy/nodes/n/run?cmd=x"),
        ("POST /apis/x.example.com/v1/namespaces/a/vms/v/restart?force=1", "with force=1"),
        ("POST /some/path?a=b+c", "with a=b c"),
    ],
)
def test_where_a_write_goes_that_is_not_tried_out_is_shown(line: str, note: str) -> None:
    assert findings(line, {}).not_tried("why").view.notes == ("why", note)


def test_the_parameters_of_a_read_are_shown() -> None:
    line = f"GET {PODS}/p/log?previous=true&tailLines=5"
    assert findings(line).read().view.notes == ("with previous=true&tailLines=5",)
    assert findings(f"GET {PODS}?limit=500&labelSelector=app%3Dweb").read().view.notes == (
        "with labelSelector=app=web",
    )


def test_an_answer_without_the_object_shows_what_is_sent() -> None:
    body = {"kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}}
    answer: Any = {"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}
    view = findings(f"POST {PODS}/p/binding", body).tried(None, answer, answer).view
    assert '"name": "n"' in view.body
    assert view.notes == ("the API server's answer does not show what it makes",)
