"""What is hidden: no byte of a masked value reaches a view, in any kind of body and object."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.policy.ask import Ask
from auth.requestinfo import parse
from proxy.hub.approvals.preview.bodies import Body
from proxy.hub.approvals.preview.findings import NOT_HONOURED, Findings
from proxy.hub.approvals.preview.mask import LAST_APPLIED
from proxy.hub.approvals.view import CHANGED, MASKED, View

MARKER = "aSecretThatNobodyMaySee"
ENCODED = base64.b64encode(MARKER.encode()).decode()
ASK = Ask(("any",))
SALT = bytes(16)
SECRET = b"/api/v1/namespaces/shop/secrets/pass"
WEB = b"/apis/apps/v1/namespaces/shop/deployments/web"
HELM = b"/api/v1/namespaces/shop/configmaps/sh.helm.release.v1.web.v1"
REVIEWS = b"/apis/authentication.k8s.io/v1/tokenreviews"

keys = st.sampled_from(["a", "data", "name", "value", "kind", "metadata", "env", "0", "x/y"])
plain = st.sampled_from([None, True, 0, 1.5, "plain", "v1", "Secret"])
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3)
)
# A marker anywhere in a value that is hidden as a whole.
hidden_values = (
    st.sampled_from([MARKER, ENCODED, f"x{MARKER}x"])
    | st.dictionaries(keys, st.just(MARKER), min_size=1, max_size=2)
    | st.lists(st.just(ENCODED), min_size=1, max_size=2)
)


def seen(view: View) -> str:
    return json.dumps([view.summary, view.flags, view.left_out, view.notes, view.body, repr(view.changes)])


def check_hidden(view: View) -> None:
    assert MARKER not in seen(view)
    assert ENCODED not in seen(view)


def body_view(target: bytes, body: object, method: bytes = b"PATCH", ask: Ask = ASK) -> View:
    findings = Findings(parse(method, target), ask, Body.of(json.dumps(body).encode()), SALT)
    return findings.not_tried(NOT_HONOURED).view


def tried(target: bytes, before: Any, after: Any, body: object = None, ask: Ask = ASK) -> View:
    data = b"" if body is None else json.dumps(body).encode()
    return Findings(parse(b"PATCH", target), ask, Body.of(data), SALT).tried(before, after, after).view


@given(hidden_values, st.sampled_from(["data", "stringData", "unheardOf"]), values)
def test_values_of_secrets_are_hidden_in_objects_and_merge_patches(
    hidden: Any, field: str, other: Any
) -> None:
    secret = {"kind": "Secret", "apiVersion": "v1", "type": "Opaque", "metadata": {"x": other}}
    for body in (
        secret | {field: {"key": hidden}},
        {field: {"key": hidden}},
        {field: hidden if not isinstance(hidden, dict) else [hidden]},
        {"kind": "List", "items": [secret | {field: {"key": hidden}}]},
    ):
        check_hidden(body_view(SECRET, body))
    check_hidden(tried(SECRET, secret, secret | {field: {"key": hidden}}))
    check_hidden(tried(SECRET, secret | {field: {"key": hidden}}, secret))
    check_hidden(tried(SECRET, None, secret | {field: {"key": hidden}}))


@given(
    hidden_values,
    st.sampled_from(["/data", "/data/key", "/stringData/a~1b", "/stringData/-", "/new", "/data/x/y", ""]),
    st.sampled_from(["add", "replace", "test", "unheard-of"]),
)
def test_values_of_secrets_are_hidden_in_json_patches(hidden: Any, path: str, op: str) -> None:
    value = hidden if path.count("/") > 1 else {"key": hidden} if path else {"data": {"key": hidden}}
    patch = [
        {"op": op, "path": path, "value": value, "note": hidden},
        {"op": "add", "path": "/metadata/labels/a", "value": "shown"},
    ]
    view = body_view(SECRET, patch)
    check_hidden(view)
    assert '"shown"' in view.body


@given(hidden_values, st.booleans(), values)
def test_env_is_hidden_unless_the_rule_shows_it(hidden: Any, listed: bool, other: Any) -> None:
    env = [{"name": "PASSWORD", "value": hidden}] if listed else {"PASSWORD": hidden}
    container = {"name": "web", "image": "nginx", "env": env}
    spec = {"template": {"spec": {"containers": [container]}}}
    bodies: list[Any] = [
        {"spec": spec},
        {"spec": {"podTemplate": [spec, other]}},
        [{"op": "add", "path": "/spec/template/spec/containers/0", "value": container}],
        [{"op": "add", "path": "/spec/template/spec/containers/0/env", "value": env}],
        [
            {
                "op": "add",
                "path": "/spec/template/spec/containers/0/env/-",
                "value": {"name": "P", "value": hidden},
            }
        ],
        [{"op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": hidden}],
    ]
    for body in bodies:
        check_hidden(body_view(WEB, body))
    shown = body_view(WEB, bodies[0], ask=Ask(("any",), show_env=True))
    assert MARKER in seen(shown) or ENCODED in seen(shown)
    without: Any = {
        "metadata": {"name": "web"},
        "spec": {"template": {"spec": {"containers": [{"name": "web"}]}}},
    }
    with_env = without | {"spec": spec}
    check_hidden(tried(WEB, without, with_env))
    check_hidden(tried(WEB, with_env, without))
    check_hidden(tried(WEB, with_env, with_env | {"metadata": {"name": "web", "labels": {"a": "b"}}}))


def test_names_and_references_of_env_are_shown() -> None:
    env: Any = [
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "pass", "key": "k"}}},
        {"name": "B", "value": "x"},
    ]
    view = body_view(WEB, {"spec": {"containers": [{"env": env}]}})
    assert '"secretKeyRef"' in view.body
    assert '"B"' in view.body
    assert f'"value": "{MASKED}"' in view.body


@pytest.mark.parametrize(
    ("target", "body"),
    [
        (WEB, {"metadata": {"annotations": {LAST_APPLIED: MARKER}}}),
        (
            WEB,
            [
                {
                    "op": "add",
                    "path": f"/metadata/annotations/{LAST_APPLIED.replace('/', '~1')}",
                    "value": MARKER,
                }
            ],
        ),
        (WEB, [{"op": "add", "path": "/metadata/annotations", "value": {LAST_APPLIED: MARKER}}]),
        (SECRET, {"metadata": {"annotations": {LAST_APPLIED: MARKER}}, "type": "helm.sh/release.v1"}),
        (SECRET, {"type": "helm.sh/release.v1", "data": {"release": ENCODED}}),
        (HELM, {"data": {"release": ENCODED}}),
        (REVIEWS, {"spec": {"token": MARKER}}),
    ],
)
def test_other_places_are_hidden_too(target: bytes, body: object) -> None:
    view = body_view(target, body)
    check_hidden(view)
    assert MASKED in view.body


def test_a_changed_value_is_only_said_to_be_changed() -> None:
    before = {"kind": "Secret", "metadata": {}, "data": {"a": "MQ==", "b": "MQ=="}}
    view = tried(SECRET, before, before | {"data": {"a": "Mg==", "c": "Mw=="}})
    assert [(change.path, change.before, change.after) for change in view.changes] == [
        ("data.a", MASKED, CHANGED),
        ("data.b", MASKED, None),
        ("data.c", None, MASKED),
    ]


@pytest.mark.parametrize("op", ["copy", "move"])
def test_a_value_that_a_json_patch_copies_is_hidden_there_too(op: str) -> None:
    before = {"kind": "Secret", "metadata": {"name": "pass"}, "data": {"key": ENCODED}}
    for copied in (ENCODED, MARKER):
        after = before | {"metadata": {"name": "pass", "annotations": {"note": copied}}}
        patch = [{"op": op, "from": "/data/key", "path": "/metadata/annotations/note"}]
        check_hidden(tried(SECRET, before, after, patch))


def test_a_secret_in_another_object_is_hidden_and_a_reference_to_one_is_shown() -> None:
    template = {"apiVersion": "v1", "kind": "Secret", "stringData": {"a": MARKER}}
    check_hidden(body_view(WEB, {"spec": {"template": template}}))
    check_hidden(body_view(WEB, [{"op": "add", "path": "/spec/template", "value": template}]))
    view = body_view(WEB, {"spec": {"certificateRefs": [{"kind": "Secret", "name": "the-name"}]}})
    assert "the-name" in view.body


@pytest.mark.parametrize(
    "body",
    [
        f'{{"data": {{"a": "{MARKER}"}}'.encode(),
        f'{{"data": {{"a": "{MARKER}"}}, "data": {{}}}}'.encode(),
        f"data:\n  a: {MARKER}\n".encode(),
        b"k8s\0\n" + MARKER.encode(),
        b"\xff\xfe" + MARKER.encode(),
        b"[" * 5000 + MARKER.encode(),
        b'{"a":' * 200 + b'"' + MARKER.encode() + b'"' + b"}" * 200,
        b'{"data": NaN, "x": "' + MARKER.encode() + b'"}',
        b'{"data": 1e999, "x": "' + MARKER.encode() + b'"}',
        b"[" + b"[]," * 200_000 + b'"' + MARKER.encode() + b'"]',
        b'{"data": ' + b"9" * 10_000 + b', "x": "' + MARKER.encode() + b'"}',
    ],
)
def test_of_a_body_that_cannot_be_read_the_size_alone_is_shown(body: bytes) -> None:
    view = Findings(parse(b"PATCH", SECRET), ASK, Body.of(body), SALT).not_tried(NOT_HONOURED).view
    check_hidden(view)
    assert not view.body
    assert f"the body of {len(body)} bytes is not shown" in view.notes[1]
