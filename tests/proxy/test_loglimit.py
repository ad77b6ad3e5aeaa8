from __future__ import annotations

import logging

import pytest

from proxy.loglimit import INTERVAL_S, LogLimit


def test_a_flood_is_a_line_a_second_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    limit = LogLimit(logging.getLogger("hawse.test"))
    for number in range(1000):
        limit.warning(f"turned away {number}", 10.0 + number / 1000 * INTERVAL_S / 2)
    limit.warning("turned away again", 10.0 + INTERVAL_S)
    limit.warning("and much later", 100.0)
    assert [record.message for record in caplog.records] == [
        "turned away 0",
        "turned away again (and 999 more like it before)",
        "and much later",
    ]
