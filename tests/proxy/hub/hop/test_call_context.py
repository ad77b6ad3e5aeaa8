from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.principal import SLUG_LENGTH_MAX, TEAMS_MAX, Principal
from proxy.hub.hop.call_context import BadContextError, CallContext
from tunnel.protocol.frames import CONTEXT_BYTES_MAX

CONTEXT = CallContext("s1", "c1", Principal("a1", "claude", "main", ("dev", "ops")), 7)


def test_what_is_written_is_read() -> None:
    assert CallContext.decode(CONTEXT.encode()) == CONTEXT


def test_the_longest_one_fits_into_a_context() -> None:
    longest = "x" * SLUG_LENGTH_MAX
    teams = tuple(f"{number:063}" for number in range(TEAMS_MAX))
    principal = Principal("i" * 64, longest, longest, teams)
    payload = CallContext("s" * 64, "c" * 64, principal, 2**63 - 1).encode()
    assert len(payload) <= CONTEXT_BYTES_MAX
    assert CallContext.decode(payload).principal == principal


def test_keys_of_a_later_version_are_ignored() -> None:
    stated = json.loads(CONTEXT.encode()) | {"purpose": ["later"]}
    assert CallContext.decode(json.dumps(stated).encode()) == CONTEXT


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", True), ("version", -1), ("version", 2**63), ("version", "7"), ("version", 7.0),
        ("teams", "dev"), ("teams", []), ("teams", [1]), ("teams", ["dev", "dev"]), ("teams", ["Dev"]),
        ("agent", None), ("agent", "a/1"), ("name", "system"), ("org", ["main"]), ("session", 1),
        ("cluster", {}),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused(key: str, value: object) -> None:
    stated = json.loads(CONTEXT.encode()) | {key: value}
    with pytest.raises(BadContextError):
        CallContext.decode(json.dumps(stated).encode())


@pytest.mark.parametrize("key", ["session", "cluster", "agent", "name", "org", "teams", "version"])
def test_a_missing_key_is_refused(key: str) -> None:
    stated = json.loads(CONTEXT.encode())
    del stated[key]
    with pytest.raises(BadContextError):
        CallContext.decode(json.dumps(stated).encode())


@given(st.binary(max_size=60))
def test_anything_else_is_refused_and_nothing_raises_otherwise(payload: bytes) -> None:
    with pytest.raises(BadContextError):
        CallContext.decode(payload)
