from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.cli.table import WRAPPED_COLUMNS_MIN, laid_out

HEADINGS = ["CLUSTER", "INSTANCE", "STATE", "KEY", "ADDRESS"]
RELAY = [
    "prod",
    "hawse-relay-6d4b75cb6d-x7k2p",
    "connected",
    "EtbE4RoEoy5ugICp3xgILpPj9GO8HTlG",
    "192.0.2.8",
]
SPARE = ("ADDRESS", "KEY")


def test_a_pipe_gets_every_column_and_a_line_for_each_row() -> None:
    table = laid_out([HEADINGS, RELAY], SPARE, None)
    assert table.left_out == []
    assert [line.split() for line in table.lines] == [HEADINGS, RELAY]


def test_a_narrow_terminal_gets_what_is_missed_most() -> None:
    table = laid_out([HEADINGS, RELAY], SPARE, 80)
    assert table.left_out == ["ADDRESS", "KEY"]
    assert table.lines == [
        "CLUSTER  INSTANCE                      STATE",
        "prod     hawse-relay-6d4b75cb6d-x7k2p  connected",
    ]
    assert laid_out([HEADINGS, RELAY], SPARE, 120).left_out == []
    assert laid_out([HEADINGS, RELAY], SPARE, 85).left_out == ["ADDRESS"]


def test_lists_are_wrapped_before_a_column_is_left_out() -> None:
    rows = [["AGENT", "TEAMS", "OWNER"], ["sre-1", "payments, platform, search", "ada@example.com"]]
    table = laid_out(rows, ("OWNER",), 44)
    assert table.left_out == []
    assert table.lines == [
        "AGENT  TEAMS                 OWNER",
        "sre-1  payments, platform,   ada@example.com",
        "       search",
    ]


def test_what_cannot_be_wrapped_stays_whole() -> None:
    table = laid_out([["ID", "WHAT"], ["i" * 36, "w" * 50]], (), 60)
    assert table.lines[1] == f"{'i' * 36}  {'w' * 50}"


@given(
    st.lists(st.lists(st.text(st.sampled_from("ab ,"), max_size=60), min_size=3, max_size=3), max_size=4),
    st.integers(20, 200),
)
def test_nothing_is_lost_by_wrapping(cells: list[list[str]], columns: int) -> None:
    rows = [["A", "B", "C"], *cells]
    table = laid_out(rows, ("C",), columns)
    said = ["C"] if table.left_out else []
    shown = [cell for row in rows for cell in (row[:2] if said else row)]
    letters = sorted("".join(shown).replace(" ", ""))
    assert sorted("".join(table.lines).replace(" ", "")) == letters
    if max(len(word) for cell in shown for word in [*cell.split(), ""]) <= WRAPPED_COLUMNS_MIN and not said:
        assert max(map(len, table.lines)) <= max(columns, 3 * WRAPPED_COLUMNS_MIN + 4)
