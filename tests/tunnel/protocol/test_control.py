from __future__ import annotations

import pytest

from tests.tunnel.protocol.joined import Joined
from tunnel.protocol import frames
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.ledger import SentLedger


def test_windows_of_one_stream_are_one_frame() -> None:
    joined = Joined()
    stream, _ = joined.streams()
    queue, ledger = ControlQueue(), SentLedger()
    queue.add_window(stream, 100)
    queue.add_window(stream, 23)
    assert len(queue.windows) == 1
    parts: list[bytes | memoryview] = []
    queue.sequenced(1000, ledger, parts, {})
    assert b"".join(parts) == frames.window(stream.id, 123)
    assert ledger.next_number == 1
    assert not queue


def test_no_window_for_a_stream_that_was_reset_meanwhile() -> None:
    joined = Joined()
    stream, _ = joined.streams()
    queue, parts = ControlQueue(), list[bytes | memoryview]()
    queue.add_window(stream, 100)
    stream.window_due = 0
    queue.sequenced(1000, SentLedger(), parts, {})
    assert parts == []


@pytest.mark.parametrize("much", [True, False])
def test_what_does_not_fit_waits_in_order_and_resets_learn_their_numbers(much: bool) -> None:
    joined = Joined()
    queue, ledger, numbers = ControlQueue(), SentLedger(), dict[int, int]()
    waiting = [frames.context(index, 1, bytes(8 * 1024)) for index in (1, 2)]
    queue.contexts.extend(waiting)
    for _ in range(2):
        stream, _ = joined.streams()
        queue.add_window(stream, 5)
        waiting.append(frames.window(stream.id, 5))
    for stream_id in (6, 8):
        frame = frames.reset(stream_id, StreamCode.CANCEL, Processed.NO, "", in_line=False)
        queue.resets.append((stream_id, frame))
        waiting.append(frame)
    for frame in waiting:
        # One that has begun to fit goes, and none behind it.
        room = len(frame) if much else 1
        parts: list[bytes | memoryview] = []
        assert queue.sequenced(room, ledger, parts, numbers) == room - len(frame)
        assert parts == [frame]
    assert numbers == {6: 4, 8: 5}
    assert not queue
