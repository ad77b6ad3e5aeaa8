from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tunnel.protocol.joined import MIB, frames_of
from tunnel.protocol import frames
from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.frames import HEADER_BYTES
from tunnel.protocol.ledger import (
    ACK_EVERY_BYTES,
    ACK_SOON_BYTES,
    CHARGED_IN_BYTES,
    KEPT_MESSAGE_BYTES,
    LEDGER_BYTES_MAX,
    LEDGER_LEAST_BYTES,
    LEDGER_RESERVE_BYTES,
    NUMBERS_MAX,
    ReceivedLedger,
    SentLedger,
)
from tunnel.protocol.memory import Memory


def frame(size: int) -> bytes:
    return frames.header(0, 0, 2, size - HEADER_BYTES) + bytes(size - HEADER_BYTES)


def send(ledger: SentLedger, *sizes: int, unsequenced: bytes = b"") -> bytes:
    """A message of frames of these sizes, noted in the ledger."""
    before = ledger.unacknowledged_bytes
    message = unsequenced + b"".join(map(frame, sizes))
    for size in sizes:
        ledger.record(1, size)
    ledger.keep(message, len(unsequenced), before)
    return message


def keeping(memory: Memory | None = None) -> SentLedger:
    return SentLedger(memory or Memory(2**40), keeping=True)


MESSAGES = st.lists(st.lists(st.integers(12, 5000), min_size=1, max_size=5), max_size=15)


@given(MESSAGES, st.booleans(), st.data())
def test_acknowledgements_free_the_messages_that_they_cover(
    messages: list[list[int]], keep: bool, data: st.DataObject
) -> None:
    memory = Memory(2**40)
    ledger = SentLedger(memory, keeping=keep)
    for sizes in messages:
        send(ledger, *sizes)
    total = sum(map(len, messages))
    assert ledger.next_number == total
    for _ in range(3):
        count = data.draw(st.integers(0, total))
        seen = max(ledger.acknowledged, count)
        ledger.acknowledge(count)
        assert ledger.acknowledged == seen
        first, expected = 0, 0
        for sizes in messages:
            first += len(sizes)
            if first > seen:
                expected += sum(sizes) + (KEPT_MESSAGE_BYTES if keep else 0)
        assert ledger.unacknowledged_bytes == expected
        assert ledger.kept_bytes == (expected if keep else 0)
        assert memory.used_bytes == ledger.charged_bytes
        assert abs(ledger.charged_bytes - ledger.kept_bytes) <= CHARGED_IN_BYTES
        assert ledger.next_number == total
    ledger.acknowledge(total)
    assert memory.used_bytes == ledger.unacknowledged_bytes == 0


def test_unacknowledged_messages_that_are_not_kept_take_little_memory() -> None:
    ledger = SentLedger()
    for _ in range(100_000):
        send(ledger, 16)
    assert ledger.unacknowledged_bytes == 16 * 100_000
    assert len(ledger._kept) <= NUMBERS_MAX + 16 * 100_000 // CHARGED_IN_BYTES + 1
    for count in (500, 99_999):
        ledger.acknowledge(count)
        assert 16 * (ledger.next_number - count) <= ledger.unacknowledged_bytes
        assert ledger.unacknowledged_bytes < 16 * (ledger.next_number - count) + 2 * CHARGED_IN_BYTES
    ledger.acknowledge(100_000)
    assert ledger.unacknowledged_bytes == 0


@given(MESSAGES, st.data())
def test_what_is_replayed_is_exactly_what_the_peer_lacks_at_any_room_and_after_any_cut(
    messages: list[list[int]], data: st.DataObject
) -> None:
    ledger = keeping()
    ack = frames.ack(7)
    all_frames = [size for sizes in messages for size in sizes]
    for sizes in messages:
        send(ledger, *sizes, unsequenced=ack)
    received = data.draw(st.integers(0, len(all_frames)))
    for _ in range(data.draw(st.integers(1, 4))):
        ledger.rewind(received)
        assert ledger.acknowledged == received
        for _ in range(data.draw(st.integers(0, 20))):
            if not ledger.replaying:
                break
            room = data.draw(st.integers(256, 12_000))
            piece = bytes(ledger.next_replayed(room))
            got = frames_of(piece)
            assert len(piece) <= room or len(got) == 1
            for _, _, _, payload in got:
                assert len(payload) + HEADER_BYTES == all_frames[received]
                received += 1
            assert ledger.sent_number == received
            if data.draw(st.booleans()):
                ledger.acknowledge(received)
    ledger.rewind(received)
    while ledger.replaying:
        received += len(frames_of(bytes(ledger.next_replayed(1_000_000))))
    assert received == ledger.sent_number == len(all_frames)
    ledger.acknowledge(received)
    assert ledger.memory.used_bytes == 0


def test_what_was_never_sent_cannot_be_acknowledged() -> None:
    ledger = keeping()
    send(ledger, 12)
    with pytest.raises(RemoteProtocolError, match="2 frames acknowledged, 1 sent"):
        ledger.acknowledge(2)


def test_what_was_not_sent_again_yet_cannot_be_acknowledged_either() -> None:
    ledger = keeping()
    send(ledger, 12)
    send(ledger, 12)
    ledger.rewind(0)
    ledger.next_replayed(1000)
    ledger.acknowledge(1)
    with pytest.raises(RemoteProtocolError, match="2 frames acknowledged, 1 sent"):
        ledger.acknowledge(2)


def test_only_what_is_here_can_be_sent_again() -> None:
    ledger = keeping()
    for _ in range(4):
        send(ledger, 12)
    ledger.acknowledge(2)
    assert [ledger.may_rewind(count) for count in range(6)] == [False, False, True, True, True, False]
    assert not SentLedger().may_rewind(0)


def test_a_frame_that_leaves_without_a_number_is_a_bug_that_shows() -> None:
    ledger = keeping()
    ledger.record(1, 20)
    with pytest.raises(AssertionError, match="a frame has no number"):
        ledger.keep(frame(20) + frame(30), 0, 0)


@pytest.mark.parametrize("keep", [True, False])
def test_a_full_ledger_keeps_a_reserve_until_something_is_acknowledged(keep: bool) -> None:
    ledger = SentLedger(keeping=keep)
    for _ in range(2):
        ledger.acknowledge(ledger.next_number)
        send(ledger, LEDGER_BYTES_MAX)
        assert ledger.full
        assert not ledger.exhausted
        send(ledger, LEDGER_RESERVE_BYTES - 12)
        assert not ledger.exhausted
    # To say again what was said before acknowledges nothing.
    ledger.acknowledge(ledger.acknowledged)
    send(ledger, 12)
    assert ledger.exhausted


def test_a_ledger_takes_its_share_of_the_memory_that_is_left() -> None:
    process = Memory(512 * MIB)
    ledger = keeping(Memory(1024 * MIB, parent=process))
    ledger.squeeze()
    assert ledger.limit_bytes == LEDGER_BYTES_MAX
    process.charge(360 * MIB)
    ledger.squeeze()
    assert ledger.limit_bytes == 3 * MIB
    process.charge(60 * MIB)
    ledger.squeeze()
    assert ledger.limit_bytes == LEDGER_LEAST_BYTES


@pytest.mark.parametrize(("count", "size", "later"), [(64, 1, 0.0), (1, 256 * 1024, 0.0), (1, 1, 1.0)])
def test_an_acknowledgement_is_due_by_frames_bytes_and_time(count: int, size: int, later: float) -> None:
    ledger = ReceivedLedger()
    assert not ledger.due(99.0)
    ledger.record(count, size, 1.0)
    assert ledger.due(1.0 + later)
    assert ledger.said(0.0) == count
    assert not ledger.due(99.0)
    ledger.record(1, 1, 1.0)
    assert not ledger.due(1.99)


def test_so_much_that_a_sender_may_wait_for_our_word_is_due_10_ms_after_the_last_one() -> None:
    ledger = ReceivedLedger()
    ledger.record(1, 1, 1.0)
    ledger.said(1.0)
    ledger.record(1, ACK_SOON_BYTES - 1, 1.001)
    assert not ledger.due(1.5)
    ledger.record(1, 1, 1.002)
    assert not ledger.due(1.009)
    assert ledger.due(1.011)
    ledger.said(1.011)
    ledger.record(1, ACK_EVERY_BYTES - 1, 1.012)
    assert not ledger.due(1.012)
    ledger.record(1, 1, 1.012)
    assert ledger.due(1.012)
    ledger.said(1.012)
    ledger.record(1, ACK_SOON_BYTES, 2.0)
    assert ledger.due(2.0)


def test_a_little_is_not_due_at_once() -> None:
    ledger = ReceivedLedger()
    ledger.record(63, 1000, 1.0)
    ledger.record(0, 1000, 1.5)
    assert not ledger.due(1.99)
    assert ledger.due_at == pytest.approx(2)
