from __future__ import annotations

import logging

import pytest

from tunnel.net.loglimit import LINES_PER_S, LogLimit


def test_a_flood_is_a_line_a_second_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    limit = LogLimit(logging.getLogger("hawse.test"))
    for number in range(1000):
        limit.warning(f"turned away {number}", 10.0 + number / 2000 / LINES_PER_S)
    limit.warning("turned away again", 10.01 + 1 / LINES_PER_S)
    limit.warning("and much later", 100.0)
    assert [record.message for record in caplog.records] == [
        "turned away 0",
        "turned away again (and 999 more like it before)",
        "and much later",
    ]


def test_the_first_ones_come_at_once_and_the_end_says_how_many_were_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    limit = LogLimit(logging.getLogger("hawse.test"), at_once=3)
    for number in range(10):
        limit.line(logging.INFO, f"refused {number}", 10.0)
    limit.end(logging.INFO, "relay-1")
    limit.end(logging.INFO, "relay-1")
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "refused 0"),
        ("INFO", "refused 1"),
        ("INFO", "refused 2"),
        ("INFO", "relay-1: lines like the last one that were left out: 7"),
    ]
