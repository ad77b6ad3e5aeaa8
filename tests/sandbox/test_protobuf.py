"""Bodies captured from kubectl 1.37, and invalid bodies."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.protobuf import decode
from sandbox.status import StatusError

EMPTY_META = b'\x12\x00\x1a\x00"\x00*\x002\x008\x00B\x00'
CONFIG_MAP = (
    b"k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\x1b\n\x11\n\x01x"
    + EMPTY_META
    + b'\x12\x06\n\x01a\x12\x01b\x1a\x00"\x00'
)
SECRET = (
    b"k8s\x00\n\x0c\n\x02v1\x12\x06Secret\x12\x1d\n\x11\n\x01x"
    + EMPTY_META
    + b'\x12\x06\n\x01a\x12\x01b\x1a\x00\x1a\x00"\x00'
)
ROLE = (
    b'k8s\x00\n$\n\x1crbac.authorization.k8s.io/v1\x12\x04Role\x12"\n\x11\n\x01x'
    + EMPTY_META
    + b'\x12\r\n\x03get\x12\x00\x1a\x04pods\x1a\x00"\x00'
)
ACCESS_REVIEW = (
    b"k8s\x00\n2\n\x17authorization.k8s.io/v1\x12\x17SelfSubjectAccessReview\x12<\n\x10\n\x00"
    + EMPTY_META
    + b'\x12\x1e\n\x1c\n\x07default\x12\x03get\x1a\x00"\x00*\x04pods2\x00:\x00'
    + b'\x1a\x08\x08\x00\x12\x00\x1a\x00 \x00\x1a\x00"\x00'
)


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def body(kind: str, message: bytes, api_version: str = "v1") -> bytes:
    return b"k8s\0" + field(1, field(1, api_version.encode()) + field(2, kind.encode())) + field(2, message)


def test_what_kubectl_sends() -> None:
    assert decode(CONFIG_MAP) == {
        "kind": "ConfigMap",
        "apiVersion": "v1",
        "metadata": {"name": "x"},
        "data": {"a": "b"},
    }
    assert decode(SECRET)["data"] == {"a": "Yg=="}
    assert decode(ROLE)["rules"] == [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]
    assert decode(ACCESS_REVIEW)["spec"] == {
        "resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}
    }


def test_pointers_keep_their_zero_and_others_do_not() -> None:
    deployment = body("Deployment", field(2, field(1, 0) + field(5, 0) + field(7, 1)), "apps/v1")
    assert decode(deployment)["spec"] == {"replicas": 0, "paused": True}
    volume = field(1, b"v") + field(2, field(2, b""))
    assert decode(body("Pod", field(2, field(1, volume))))["spec"] == {
        "volumes": [{"name": "v", "emptyDir": {}}]
    }


def test_numbers_names_and_times() -> None:
    minus_one = (1 << 64) - 1
    port = field(3, 80) + field(4, field(1, 1) + field(3, b"http")) + field(5, minus_one)
    other = field(3, 81) + field(4, field(1, 0) + field(2, 8080))
    service = decode(body("Service", field(2, field(1, port) + field(1, other))))
    assert service["spec"] == {
        "ports": [{"port": 80, "targetPort": "http", "nodePort": -1}, {"port": 81, "targetPort": 8080}]
    }
    event = decode(
        body("Event", field(6, field(1, 1_700_000_000)) + field(10, field(1, 1) + field(2, 5_000)))
    )
    assert (event["firstTimestamp"], event["eventTime"]) == (
        "2023-11-14T22:13:20Z",
        "1970-01-01T00:00:01.000005Z",
    )


def test_amounts_packed_numbers_and_lists_in_maps() -> None:
    amounts = field(1, field(1, b"cpu") + field(2, field(1, b"100m")))
    groups = field(4, varint(5) + varint(300))
    pod = field(2, field(2, field(1, b"c") + field(8, amounts)) + field(14, groups))
    assert decode(body("Pod", pod))["spec"] == {
        "containers": [{"name": "c", "resources": {"limits": {"cpu": "100m"}}}],
        "securityContext": {"supplementalGroups": [5, 300]},
    }
    extra = field(5, field(1, b"k") + field(2, field(1, b"v1") + field(1, b"v2")))
    review = decode(body("SubjectAccessReview", field(2, extra), "authorization.k8s.io/v1"))
    assert review["spec"] == {"extra": {"k": ["v1", "v2"]}}


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"k8s\0",
        body("Nothing", b""),
        CONFIG_MAP[:-30],
        body("ConfigMap", b"\x0a\xff"),
        body("ConfigMap", field(1, 3)),
        body("ConfigMap", field(1, field(1, b"\xff"))),
        body("Deployment", field(2, field(1, b"x"))),
        body("ConfigMap", b"\x0b"),
        b"k8s\0" + b"\xff" * 12,
    ],
)
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(StatusError) as caught:
        decode(data)
    assert caught.value.code == 400


@given(st.sampled_from(["Pod", "Deployment", "Event", "Service"]), st.binary(max_size=80))
def test_nothing_but_a_refusal_comes_of_arbitrary_bytes(kind: str, data: bytes) -> None:
    with contextlib.suppress(StatusError):
        decode(body(kind, data))
