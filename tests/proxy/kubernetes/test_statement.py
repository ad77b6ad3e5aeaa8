from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.kubernetes.statement import STATEMENT_BYTES_MAX, Statement, StatementError

UID = "0b9f2c1e-6a53-4c0e-9d6b-5f0f5c7f6a11"


@pytest.mark.parametrize(
    ("statement", "text"),
    [
        (Statement(), ""),
        (Statement(UID), f"cluster={UID}"),
        (Statement(UID, api_server=True), f"cluster={UID} api=up"),
        (Statement(api_server=False), "api=down"),
    ],
)
def test_a_statement_is_a_line_of_words(statement: Statement, text: str) -> None:
    assert str(statement) == text
    assert Statement.read(text) == statement


def test_words_of_later_versions_are_ignored() -> None:
    assert Statement.read("nodes=7 api=up new") == Statement(api_server=True)


@pytest.mark.parametrize(
    "text", ["cluster=a b/c=1 cluster=x\ny", "cluster=a/b", "cluster=" + "a" * 65, "api=maybe", "api="]
)
def test_what_no_relay_states_is_an_error(text: str) -> None:
    with pytest.raises(StatementError):
        Statement.read(text)


def test_a_statement_fits_into_a_hello_and_no_longer_one_is_read() -> None:
    assert len(str(Statement("a" * 64, api_server=False))) < STATEMENT_BYTES_MAX
    with pytest.raises(StatementError, match="exceeds 256"):
        Statement.read("x" * 257)


@given(st.text())
def test_reading_raises_nothing_else(text: str) -> None:
    with suppress(StatementError):
        assert Statement.read(text).cluster_uid.isascii()
