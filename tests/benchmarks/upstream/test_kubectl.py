from __future__ import annotations

from benchmarks.upstream.kubectl import ANSWERS, server


def test_every_answer_can_stand_between_nginx_s_quotes() -> None:
    for line in server(8443).splitlines():
        if "return" in line:
            # The two around it, and no other; and nothing that nginx would take for a variable.
            assert line.count("'") == 2, line
            assert "$" not in line


def test_the_table_has_a_cell_for_each_column() -> None:
    (table,) = (answer for answer in ANSWERS.values() if answer["kind"] == "Table")
    columns, rows = table["columnDefinitions"], table["rows"]
    assert isinstance(columns, list)
    assert isinstance(rows, list)
    assert all(len(row["cells"]) == len(columns) for row in rows)
