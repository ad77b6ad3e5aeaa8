from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.hub.trail import without_bearer


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        (b"/api?access_token=abc", b"/api?access_token=***"),
        (b"/api?a=1&access_token=abc&b=2", b"/api?a=1&access_token=***&b=2"),
        (b"/api?access%5Ftoken=abc", b"/api?access%5Ftoken=***"),
        (b"/api?Access_Token=abc&access_token=d", b"/api?Access_Token=***&access_token=***"),
        (b"/api?limit=500", b"/api?limit=500"),
        (b"/api/access_token=x", b"/api/access_token=x"),
    ],
)
def test_a_token_in_a_query_is_not_recorded(target: bytes, kept: bytes) -> None:
    assert without_bearer(target) == kept


@given(st.binary(max_size=40))
def test_any_bytes_may_stand_in_a_target(query: bytes) -> None:
    assert without_bearer(b"/p?" + query).startswith(b"/p?")
