"""The table of failures names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests.named import missing_tests

PAGE = Path(__file__).with_name("README.md").read_text()
# Of several hubs on one store, which there are not yet.
LATER = {36, 37, 49}


def test_every_test_that_it_names_is_there() -> None:
    assert missing_tests(PAGE) == []


def test_every_failure_is_named() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)]
    assert numbers == [number for number in range(1, 51) if number not in LATER]
