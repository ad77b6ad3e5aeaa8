"""The effect and the difference: the same for the same call, and another one for any change."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.approvals.preview.difference import DIFFERENCES_MAX, RESTARTED_AT, VARYING_MAX
from proxy.hub.approvals.preview.effect import OBJECTS_MAX, Effect, effect_fits
from proxy.hub.approvals.preview.findings import NO_OBJECT, NOT_HONOURED, object_of
from proxy.hub.approvals.preview.shapes import Preview
from proxy.hub.approvals.preview.values import DEPTH_MAX, canonical, leaves, same, shown_json
from proxy.hub.approvals.view import VIEW_BYTES_MAX, Change
from tests.proxy.hub.approvals.preview.findings import WEB, findings

SECRET = "/api/v1/namespaces/shop/secrets/pass"

keys = st.text(max_size=4) | st.sampled_from(["name", "env", "data", "value", "spec", "metadata", "status"])
atoms: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False)
)
atoms |= st.text(max_size=5)
values = st.recursive(
    atoms, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)
named = st.fixed_dictionaries({"name": st.just("web"), "labels": values})
objects = st.fixed_dictionaries(
    {"kind": st.just("Deployment"), "spec": values, "data": values, "metadata": named}
)
targets = st.sampled_from([WEB, SECRET])


def tried(before: Any, after: Any, again: Any = None, target: str = WEB) -> Preview:
    return findings(target).tried(before, after, after if again is None else again)


@given(objects | st.none(), objects, targets)
def test_the_same_call_has_the_same_effect(before: Any, after: Any, target: str) -> None:
    made = tried(before, after, target=target)
    assert made == tried(copy.deepcopy(before), copy.deepcopy(after), target=target)
    assert effect_fits(made.effect, made.effect)
    assert Effect.parse(made.effect) is not None
    # Another salt makes it another text, which reveals nothing about the first.
    other = findings(target, salt=bytes(16)).tried(before, after, after)
    assert not effect_fits(made.effect, other.effect)


@given(objects | st.none(), objects, targets, st.data())
def test_any_changed_leaf_is_another_effect(
    before: Any, after: Any, target: str, data: st.DataObject
) -> None:
    found = [steps for steps, _ in leaves(after) if steps[0] != "status"]
    steps = data.draw(st.sampled_from(found))
    value = data.draw(atoms)
    changed = copy.deepcopy(after)
    inner: Any = changed
    for step in steps[:-1]:
        inner = inner[step]
    if same(inner[steps[-1]], value):
        return
    inner[steps[-1]] = value
    one, other = tried(before, after, target=target), tried(before, changed, target=target)
    assert not effect_fits(one.effect, other.effect)


@given(objects, objects, values)
def test_fields_that_do_not_count_change_nothing(before: Any, after: Any, other: Any) -> None:
    noise = {"uid": other, "resourceVersion": other, "generation": other, "managedFields": other}
    noise["creationTimestamp"] = other
    noisy = after | {"metadata": after["metadata"] | noise, "status": other}
    assert tried(before, after) == tried(before, noisy)
    assert tried(before, after) == tried(before | {"status": other}, after)


def test_the_status_counts_where_it_is_the_subject() -> None:
    before = {"kind": "Deployment", "metadata": {"name": "web"}, "status": {"replicas": 1}}
    found = tried(before, before | {"status": {"replicas": 2}}, target=f"{WEB}/status")
    assert found.view.changes == (Change("status.replicas", "1", "2"),)
    assert found.view.summary == "changes Deployment web (status) in 1 place"


def deployment(**annotations: str) -> dict[str, Any]:
    template = {"metadata": {"annotations": annotations}} if annotations else {}
    return {"kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": template}}


@given(st.datetimes(), st.datetimes(), st.booleans())
def test_the_time_of_a_restart_does_not_count(one: Any, other: Any, restarted: bool) -> None:
    first, second = f"{one.isoformat()}Z", f"{other.isoformat()}+02:00"
    earlier = deployment(**{RESTARTED_AT: "2026-01-01T00:00:00Z"}) if restarted else deployment()
    made = tried(earlier, deployment(**{RESTARTED_AT: first}))
    assert made == tried(earlier, deployment(**{RESTARTED_AT: second}))
    assert made.view.summary in {"restarts Deployment web", "changes Deployment web in 1 place"}
    assert len(made.view.changes) == 1


def test_a_restart_is_said_to_be_one() -> None:
    after = deployment(**{RESTARTED_AT: "2026-05-01T00:00:00Z"})
    assert tried(
        deployment(a="b"), deployment(a="b", **{RESTARTED_AT: "2026-05-01T00:00:00Z"})
    ).view.summary == ("restarts Deployment web")
    assert tried(deployment(**{RESTARTED_AT: "2026-01-01T00:00:00Z"}), after).view.summary == (
        "restarts Deployment web"
    )
    # Any other text there is a text.
    other = tried(deployment(), deployment(**{RESTARTED_AT: "now"}))
    assert "now" in (other.view.changes[0].after or "")


def test_places_that_differ_between_two_dry_runs_are_listed_and_left_out() -> None:
    def job(number: int) -> dict[str, Any]:
        labels = {"controller-uid": f"u{number}", "app": "x"}
        ports = [{"name": "web", "port": 80, "nodePort": 30000 + number}]
        return {
            "kind": "Job",
            "metadata": {"name": f"job-{number}", "labels": labels},
            "spec": {"ports": ports},
        }

    made = findings(method="POST").tried(None, job(1), job(2))
    assert made == findings(method="POST").tried(None, job(3), job(4))
    assert made.view.left_out == (
        "metadata.labels.controller-uid",
        "metadata.name",
        "spec.ports[name=web].nodePort",
    )
    assert "30001" not in made.view.body
    assert '"port": 80' in made.view.body
    other = job(1)
    other["spec"]["ports"][0]["port"] = 81
    assert (
        made.effect != findings(method="POST").tried(None, other, {**other, "metadata": {"name": "z"}}).effect
    )


@given(objects, objects, objects)
def test_two_different_dry_runs_never_raise_and_agree_in_either_order(
    before: Any, one: Any, other: Any
) -> None:
    first, second = tried(before, one, other), tried(before, other, one)
    assert first.view.left_out == second.view.left_out
    assert first.effect == second.effect


def test_dummies_of_a_service_are_left_out_unless_they_are_asked_for() -> None:
    def service(port: int, **more: object) -> dict[str, Any]:
        spec: dict[str, Any] = {
            "clusterIP": "10.96.0.0",
            "ports": [{"name": "a", "port": 1, "nodePort": port}],
        }
        return {"kind": "Service", "metadata": {"name": "s"}, "spec": spec | more}

    target = "/api/v1/namespaces/shop/services"
    made = findings(target, b'{"spec": {}}', "POST").tried(None, service(32769), service(32769))
    assert made.view.left_out == ("spec.clusterIP", "spec.ports[0].nodePort")
    body = b'{"spec": {"ports": [{"nodePort": 31000}], "clusterIP": "None"}}'
    asked = findings(target, body, "POST").tried(None, service(31000), service(31000))
    assert asked.view.left_out == ()


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"args": ["a", "b"]}, {"args": ["b", "a"]}, [("spec.args", '["a", "b"]', '["b", "a"]')]),
        (
            {"c": [{"name": "a", "v": 1}, {"name": "b", "v": 1}]},
            {"c": [{"name": "b", "v": 2}, {"name": "a", "v": 1}]},
            [('spec.c["(order)"]', '["a", "b"]', '["b", "a"]'), ("spec.c[name=b].v", "1", "2")],
        ),
        (
            {"c": [{"name": "a"}]},
            {"c": [{"name": "x y"}, {"name": "a"}]},
            [('spec.c["(order)"]', '["a"]', '["x y", "a"]'), ('spec.c[name="x y"]', None, '{"name": "x y"}')],
        ),
        (
            {"c": [{"name": "a"}, {"name": "b"}]},
            {"c": [{"name": "a"}]},
            [("spec.c[name=b]", '{"name": "b"}', None)],
        ),
        (
            {"c": [{"name": "a"}]},
            {"c": [{"name": "a"}, {"name": "a"}]},
            [("spec.c[1]", None, '{"name": "a"}')],
        ),
        ({"v": 1}, {"v": True}, [("spec.v", "1", "true")]),
        ({"v": 1}, {"v": 1.0}, [("spec.v", "1", "1.0")]),
        ({"v": None}, {}, [("spec.v", "null", None)]),
        (
            {"v": 9007199254740992},
            {"v": 9007199254740993},
            [("spec.v", "9007199254740992", "9007199254740993")],
        ),
        ({"a.b/c": 1}, {"a.b/c": 2}, [('spec["a.b/c"]', "1", "2")]),
        ({"v": "a"}, {"v": "\u202ea\x1b[2J\ud800é"}, [("spec.v", '"a"', '"\\u202ea\\u001b[2J\\ud800é"')]),
        ({"\u202ek": 1}, {}, [('spec["\\u202ek"]', "1", None)]),
    ],
)
def test_differences_read_well(
    before: Any, after: Any, changes: list[tuple[str, str | None, str | None]]
) -> None:
    view = tried({"spec": before}, {"spec": after}).view
    assert list(view.changes) == [Change(*change) for change in changes]


@given(values)
def test_shown_json_is_json_of_the_value_in_one_printable_line(value: Any) -> None:
    text = shown_json(value)
    assert same(json.loads(text), json.loads(json.dumps(value)))
    assert text.isprintable()
    assert canonical(value).isascii()


def test_a_difference_that_is_too_large_cannot_be_approved() -> None:
    large = "x" * VIEW_BYTES_MAX
    for made in (tried({"spec": "y"}, {"spec": large}), tried(None, {"spec": large})):
        assert made.view.too_large
        assert made.view.notes == ("what it changes is longer than 256 KiB: it cannot be approved",)
        assert (
            sum(len(change.after or "") for change in made.view.changes) + len(made.view.body)
            <= VIEW_BYTES_MAX
        )
    assert not tried({"spec": "y"}, {"spec": large[:1000]}).view.too_large
    assert findings(body=json.dumps({"a": large}).encode()).not_tried(NOT_HONOURED).view.too_large


@pytest.mark.parametrize(
    "answer", [b"", b"null", b"[]", b"<html>", b'"a"', b'{"a":1,"a":2}', b"{" * 5000, b"\xff"]
)
def test_an_answer_that_is_no_object_is_not_compared(answer: bytes) -> None:
    assert object_of(answer) is None
    made = findings().tried({}, object_of(answer), {})
    assert made.view.notes == (NO_OBJECT,)


def test_nesting_is_bounded() -> None:
    assert object_of(b'{"a":' * DEPTH_MAX + b"1" + b"}" * DEPTH_MAX) is not None
    assert object_of(b'{"a":' * (DEPTH_MAX + 2) + b"1" + b"}" * (DEPTH_MAX + 2)) is None


def pod(uid: str, **more: object) -> dict[str, Any]:
    return {"kind": "Pod", "metadata": {"name": uid, "namespace": "shop", "uid": uid, **more}}


def test_a_deletion_names_what_goes_with_the_object() -> None:
    web: Any = {"kind": "Deployment", "metadata": {"name": "web", "uid": "d", "finalizers": ["b", "a"]}}
    sets: Any = {
        "items": [pod("r", ownerReferences=[{"uid": "d"}]), pod("s", ownerReferences=[{"uid": "other"}])]
    }
    pods: Any = {"items": [pod(f"p{n}", ownerReferences=[{"uid": "r"}]) for n in range(6)] + [pod("q")]}
    delete = findings(method="DELETE")
    made = delete.deleted(web, [("replicasets", sets), ("pods", pods)], "a note")
    assert made.view.summary == "deletes Deployment web, at least 6 pods"
    assert made.view.notes == ("a note", "it has finalizers, so it goes later: a, b")
    # What belongs to it is information.
    assert made.effect == delete.deleted(web, []).effect
    others: list[Any] = [{"uid": "e"}, {"finalizers": ["a"]}]
    for other in others:
        assert made.effect != delete.deleted(web | {"metadata": web["metadata"] | other}, []).effect


def test_a_subset_of_a_collection_is_the_same_effect() -> None:
    many = findings("/api/v1/namespaces/shop/pods", method="DELETE")
    made = many.deleted_many({"items": [pod("a"), pod("b"), pod("c")]})
    assert made.view.summary == "deletes 3 pods"
    assert made.view.body == "shop/a\nshop/b\nshop/c"
    for uids, fits in (("abc", True), ("cb", True), ("", True), ("abd", False), ("d", False)):
        now = many.deleted_many({"items": [pod(uid) for uid in uids]})
        assert effect_fits(made.effect, now.effect) is fits
    assert not effect_fits(many.deleted_many({"items": []}).effect, made.effect)
    assert not effect_fits(made.effect, many.deleted_unseen("x").effect)


def test_a_collection_that_is_too_large_cannot_be_approved() -> None:
    many = findings("/api/v1/namespaces/shop/pods", method="DELETE")
    whole = many.deleted_many({"items": [pod(str(n)) for n in range(OBJECTS_MAX)]})
    assert not whole.view.too_large
    assert len(whole.effect) <= 64 * 1024
    too_many: list[Any] = [
        {"items": [pod(str(n)) for n in range(OBJECTS_MAX + 1)]},
        {"items": [pod("a")], "metadata": {"continue": "x"}},
        {"items": [{}]},
    ]
    for listed in too_many:
        assert many.deleted_many(listed).view.too_large


def test_an_exec_is_bound_to_the_pod_and_its_images() -> None:
    target = (
        "/api/v1/namespaces/shop/pods/web-1/exec?command=sh&command=-c&command=echo%20%24HOME&container=app"
    )
    exec_ = findings(target, method="POST")
    status = {
        "containerStatuses": [{"name": "app", "imageID": "sha256:1"}, {"name": "b", "imageID": "sha256:2"}]
    }
    running = pod("web-1") | {"status": status, "spec": {"hostNetwork": True, "hostPID": False}}
    made = exec_.reached(running)
    assert made.view.summary == "runs `sh -c 'echo $HOME'` in Pod web-1 (container app)"
    assert made.view.flags == ("uses the host's network",)
    assert made.view.body == "app: sha256:1\nb: sha256:2"
    other = {
        "containerStatuses": [{"name": "app", "imageID": "sha256:9"}, {"name": "b", "imageID": "sha256:2"}]
    }
    assert made.effect != exec_.reached(running | {"status": other}).effect
    assert made.effect != exec_.reached(running | {"metadata": {"uid": "new"}}).effect
    assert made.effect == exec_.reached(running | {"metadata": {"uid": "web-1", "labels": {"a": "b"}}}).effect


@pytest.mark.parametrize(
    "text", ["", "1:", "x", "1:" + "0" * 32 + ":" + "0" * 31, "2:" + "0" * 32 + ":" + "0" * 32, "1::[]"]
)
def test_a_text_that_is_no_effect_fits_nothing(text: str) -> None:
    made = findings().read().effect
    assert not effect_fits(text, made)
    assert not effect_fits(made, text)
    assert not effect_fits(text, text)


def test_notes_that_a_relay_words_are_safe_to_show() -> None:
    made = findings().not_tried("not tried out: \u202ethe relay \x1b[2J says so")
    assert made.view.notes == ("not tried out: \\u202ethe relay \\u001b[2J says so",)


def test_more_differences_than_a_person_reads_cannot_be_approved() -> None:
    before, after = ({"spec": {str(n): n + more for n in range(DIFFERENCES_MAX + 1)}} for more in (0, 1))
    made = tried(before, after)
    assert made.view.too_large
    assert made.view.summary == f"changes Deployment web in more than {DIFFERENCES_MAX} places"
    before["spec"].pop("0"), after["spec"].pop("0")
    assert len(tried(before, after).view.changes) == DIFFERENCES_MAX


def test_dry_runs_that_have_nothing_in_common_are_not_compared() -> None:
    one, other = ({"spec": {str(n): n + more for n in range(VARYING_MAX + 1)}} for more in (0, 1))
    assert tried({}, one, other).view.notes[0].startswith("two dry runs have nothing in common")
    one["spec"].pop("0"), other["spec"].pop("0")
    assert len(tried({}, one, other).view.left_out) == VARYING_MAX
