from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.ledger import LEDGER_BYTES_MAX, LEDGER_RESERVE_BYTES, ReceivedLedger, SentLedger


@given(st.lists(st.integers(12, 5000), max_size=50), st.data())
def test_acknowledgements_free_exactly_what_they_cover(sizes: list[int], data: st.DataObject) -> None:
    ledger = SentLedger()
    for size in sizes:
        ledger.record(size)
    assert ledger.next_number == len(sizes)
    for _ in range(3):
        count = data.draw(st.integers(0, len(sizes)))
        seen = max(ledger.acknowledged, count)
        ledger.acknowledge(count)
        assert ledger.acknowledged == seen
        assert ledger.unacknowledged_bytes == sum(sizes[seen:])
        assert ledger.next_number == len(sizes)


def test_what_was_never_sent_cannot_be_acknowledged() -> None:
    ledger = SentLedger()
    ledger.record(12)
    with pytest.raises(RemoteProtocolError, match="2 frames acknowledged, 1 sent"):
        ledger.acknowledge(2)


def test_a_full_ledger_keeps_a_reserve() -> None:
    ledger = SentLedger()
    ledger.record(LEDGER_BYTES_MAX)
    assert ledger.full
    assert not ledger.exhausted
    ledger.record(LEDGER_RESERVE_BYTES)
    assert ledger.exhausted


@pytest.mark.parametrize(("frames", "size", "later"), [(64, 1, 0.0), (1, 256 * 1024, 0.0), (1, 1, 0.05)])
def test_an_acknowledgement_is_due_by_frames_bytes_and_time(frames: int, size: int, later: float) -> None:
    ledger = ReceivedLedger()
    assert not ledger.due(99.0)
    ledger.record(frames, size, 1.0)
    assert ledger.due(1.0 + later)
    assert ledger.said() == frames
    assert not ledger.due(99.0)


def test_a_little_is_not_due_at_once() -> None:
    ledger = ReceivedLedger()
    ledger.record(63, 1000, 1.0)
    assert not ledger.due(1.04)
    assert ledger.due_at == pytest.approx(1.05)
