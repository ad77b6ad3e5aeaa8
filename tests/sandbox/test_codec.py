from __future__ import annotations

import pytest

from sandbox import codec, kinds
from sandbox.objects import Object
from sandbox.server import Request
from sandbox.status import StatusError
from sandbox.storage import Item


def request(query: str = "", **headers: str) -> Request:
    lines = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items())
    pairs = [part.partition("=") for part in query.split("&") if part]
    return Request("POST", "/", "/", {key: [value] for key, _, value in pairs}, lines)


@pytest.mark.parametrize(
    ("accept", "form", "version"),
    [
        ("", "", "v1"),
        ("application/json", "", "v1"),
        ("application/vnd.kubernetes.protobuf,application/json", "", "v1"),
        (
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            "Table",
            "v1",
        ),
        ("application/json;as=Table;v=v1beta1;g=meta.k8s.io", "Table", "v1beta1"),
        ("application/json;as=Chair;v=v1;g=meta.k8s.io,application/json", "", "v1"),
        (
            "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io",
            "PartialObjectMetadataList",
            "v1",
        ),
        ("application/json, */*", "", "v1"),
    ],
)
def test_the_form_of_the_answer(accept: str, form: str, version: str) -> None:
    found = codec.answer_form(request(accept=accept) if accept else request())
    assert (found.form, found.version) == (form, version)


def test_what_cannot_be_given_is_not_acceptable() -> None:
    with pytest.raises(StatusError) as caught:
        codec.answer_form(request(accept="application/cbor"))
    assert caught.value.code == 406


def test_bodies_in_json_and_yaml() -> None:
    expected: Object = {"kind": "ConfigMap", "data": {"a": "b"}}
    for body, content_type in (
        (b'{"kind": "ConfigMap", "data": {"a": "b"}}', "application/json; charset=utf-8"),
        (b"kind: ConfigMap\ndata: {a: b}\n", "application/yaml"),
    ):
        assert codec.decode_body(request(content_type=content_type), body) == expected
    assert codec.decode_body(request(), b"{}") == {}


@pytest.mark.parametrize(
    ("body", "content_type", "code"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"a: [", "application/yaml", 400),
        (b"a: 2020-01-01", "application/yaml", 400),
        (b"{}", "text/plain", 415),
        (b"[" * 100_000, "application/json", 400),
    ],
)
def test_a_body_that_is_no_object(body: bytes, content_type: str, code: int) -> None:
    with pytest.raises(StatusError) as caught:
        codec.decode_body(request(content_type=content_type), body)
    assert caught.value.code == code


def test_the_kind_must_be_that_of_the_address() -> None:
    with pytest.raises(StatusError, match="do not match"):
        codec.decode_object(request(), b'{"kind": "Pod", "apiVersion": "v1"}', "ConfigMap", "v1", [])


def test_unknown_fields_are_refused_warned_of_or_ignored() -> None:
    def decode(query: str) -> list[str]:
        warnings: list[str] = []
        value = codec.decode_object(request(query), b'{"datum": 1, "data": {}}', "ConfigMap", "v1", warnings)
        assert value == {"data": {}}
        return warnings

    assert decode("") == decode("fieldValidation=Warn") == ['unknown field "datum"']
    assert decode("fieldValidation=Ignore") == []
    with pytest.raises(StatusError, match='strict decoding error: unknown field "datum"'):
        decode("fieldValidation=Strict")
    assert codec.warning_headers(['unknown field "x"']) == [("Warning", '299 - "unknown field \\"x\\""')]


def test_objects_have_their_type_first_and_the_items_of_lists_none() -> None:
    item = Item({"metadata": {"name": "c"}}, 1)
    assert codec.with_type(kinds.CONFIG_MAPS, item) == (
        b'{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"c"}}'
    )
    assert codec.list_body(kinds.DEPLOYMENTS, b"{}", [item, item]) == (
        b'{"kind":"DeploymentList","apiVersion":"apps/v1","metadata":{},'
        b'"items":[{"metadata":{"name":"c"}},{"metadata":{"name":"c"}}]}'
    )
