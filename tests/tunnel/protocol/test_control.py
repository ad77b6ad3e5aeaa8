from __future__ import annotations

from tests.tunnel.protocol.joined import Joined, frames_of
from tunnel.protocol import frames
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import Processed, StreamCode
from tunnel.protocol.frames import FrameType
from tunnel.protocol.ledger import SentLedger


def test_windows_of_one_stream_are_one_frame() -> None:
    joined = Joined()
    stream, _ = joined.streams()
    queue, ledger = ControlQueue(), SentLedger()
    queue.add_window(stream, 100)
    queue.add_window(stream, 23)
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


def test_what_does_not_fit_waits_in_order_and_resets_learn_their_numbers() -> None:
    queue, ledger, numbers = ControlQueue(), SentLedger(), dict[int, int]()
    queue.contexts.append(frames.context(1, 1, bytes(500)))
    for stream_id in (2, 4):
        frame = frames.reset(stream_id, StreamCode.CANCEL, Processed.NO, "", in_line=False)
        queue.resets.append((stream_id, frame))
    parts: list[bytes | memoryview] = []
    assert queue.sequenced(400, ledger, parts, numbers) < 0
    assert [kind for kind, *_ in frames_of(b"".join(parts))] == [FrameType.CONTEXT]
    assert numbers == {}
    queue.sequenced(400, ledger, parts, numbers)
    assert numbers == {2: 1, 4: 2}
    assert not queue
