from __future__ import annotations

import json

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.approvals.plan.body import BODY_BYTES_MAX
from proxy.hub.approvals.plan.json_body import check_body, is_json, media_type
from proxy.hub.approvals.plan.refusal import CannotAskError
from tests.proxy.hub.approvals.plan.calls import JSON

# kubectl sends JSON under all of these.
JSON_TYPES = [
    (),
    (b"",),
    JSON,
    (b"application/json; charset=utf-8",),
    (b"Application/JSON",),
    (b"application/json-patch+json",),
    (b"application/merge-patch+json",),
    (b"application/strategic-merge-patch+json",),
    (b"application/apply-patch+yaml",),
    (b"application/yaml",),
]
OTHER_TYPES = [
    (b"application/vnd.kubernetes.protobuf",),
    (b"application/cbor",),
    (b"application/apply-patch+cbor",),
    (b"application/octet-stream",),
]
DOUBLED = [
    b'{"a":1,"a":1}',
    b'{"a":1,"a":2}',
    b'{"a":1,"\\u0061":2}',
    b'[{"spec":{"a":[{"x":1,"y":2,"x":3}]}}]',
    b'{"":1,"":2}',
]
NO_JSON = [
    b"{",
    b"{} {}",
    b"{'a':1}",
    b"\xef\xbb\xbf{}",
    b'{"a":"\xff"}',
    b'{"a":NaN}',
    b'{"a":-Infinity}',
    b'{"a":"\n"}',
    b'{"\\ud800":1}',
    b'{"a":1,}',
    b"a: 1",
    b"a: &x 1\nb: *x",
    b" ",
    '{"a":1}'.encode("utf-16"),
]


def refusal(types: tuple[bytes, ...], body: bytes, encodings: tuple[bytes, ...] = ()) -> CannotAskError:
    with pytest.raises(CannotAskError) as refused:
        check_body(types, encodings, body)
    assert "\n" not in refused.value.reason
    return refused.value


@pytest.mark.parametrize("types", JSON_TYPES)
@pytest.mark.parametrize("body", DOUBLED)
def test_a_key_that_occurs_twice_is_refused(types, body):
    assert refusal(types, body).status == 400
    assert "a key twice" in refusal(types, body).reason


@pytest.mark.parametrize("body", NO_JSON)
def test_a_body_that_is_not_strict_json_is_refused(body):
    assert refusal(JSON, body).status == 400
    for yaml in (b"application/apply-patch+yaml", b"application/yaml"):
        assert refusal((yaml,), body).status == 415
        assert "as JSON" in refusal((yaml,), body).reason


@given(
    st.recursive(
        st.integers() | st.text() | st.none() | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    ),
    st.booleans(),
)
def test_other_json_is_accepted(value, ascii_only):
    check_body(JSON, (), json.dumps(value, ensure_ascii=ascii_only).encode())


@pytest.mark.parametrize("types", OTHER_TYPES)
def test_other_types_are_not_read(types):
    assert not is_json(media_type(types))
    for body in (*DOUBLED, *NO_JSON):
        check_body(types, (), body)


@pytest.mark.parametrize("types", [*JSON_TYPES, *OTHER_TYPES])
def test_a_request_without_a_body_is_accepted(types):
    check_body(types, (), b"")


@pytest.mark.parametrize(
    "encodings", [(b"gzip",), (b"GZIP",), (b"identity", b"gzip"), (b"identity, gzip",), (b"br",)]
)
def test_a_compressed_body_is_refused(encodings):
    assert refusal(JSON, b"{}", encodings).status == 415


@pytest.mark.parametrize("encodings", [(), (b"",), (b"identity",), (b"Identity",)])
def test_a_plain_body_is_accepted(encodings):
    check_body(JSON, encodings, b"{}")


@pytest.mark.parametrize("types", [(*JSON, *JSON), (*JSON, b"application/vnd.kubernetes.protobuf")])
def test_a_repeated_type_is_refused(types):
    assert refusal(types, b"{}").status == 400


def test_a_type_that_go_alone_reads_as_json_is_refused():
    types = ("appl\u0130cation/json".encode(),)
    assert not is_json(media_type(types))
    assert "not ASCII" in refusal(types, b"{}").reason


async def test_a_deep_body_is_refused_in_a_thread_too():
    half = BODY_BYTES_MAX // 2
    for body in (b"[" * half + b"]" * half, b'{"a":' * (half // 5)):
        assert refusal(JSON, body).status == 400
        assert (await trio.to_thread.run_sync(refusal, JSON, body)).status == 400


def test_a_long_number_takes_no_time_and_is_accepted():
    check_body(JSON, (), b'{"a":' + b"1" * 100_000 + b"}")


def test_a_refusal_holds_no_part_of_the_body():
    for body in (b'{"hunter2":1,"hunter2":2}', b'{"password":hunter2}', b"hunter2: a"):
        assert "hunter2" not in str(refusal(JSON, body))
