"""The table of attacks names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.named import missing_tests

PAGE = (Path(__file__).parent / "ATTACKS.md").read_text()


def test_every_test_that_it_names_is_there() -> None:
    assert missing_tests(PAGE) == []


def test_no_attack_is_without_a_test() -> None:
    rows = dict(re.findall(r"^\| (C\d\d) \|(.*)$", PAGE, re.MULTILINE))
    assert list(rows) == sorted(rows)
    assert len(rows) > 30
    assert [number for number, row in rows.items() if "::" not in row] == []
