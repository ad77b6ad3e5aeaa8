"""Random histories of a forwarded call: byte for byte or a cut, never a clean end that was not said."""

from __future__ import annotations

import attrs
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from proxy.hub.store.entities import AgentState
from tests.proxy.hub.hop.bench import Hubs, agent, cluster, open_hubs
from tests.tunnel.trio_stream import TrioStream
from tunnel import StreamCode, StreamReset

# Above a window, and above what a stream queues.
SIZES = st.sampled_from([1, 1000, 70_000, 150_000, 400_000])


@attrs.define(eq=False)
class End:
    """One end of a forwarded stream: what it has said, and heard of the other one."""

    stream: TrioStream
    said: bytearray = attrs.Factory(bytearray)
    said_end: bool = False
    heard: bytearray = attrs.Factory(bytearray)
    heard_end: bool = False
    cut: bool = False
    takes: bool = True

    def say(self, size: int) -> None:
        if self.said_end or self.cut:
            return
        data = bytes([len(self.said) // 1000 % 251]) * size
        try:
            self.stream.write(data)
        except StreamReset:
            self.cut = True
        else:
            self.said += data

    def end(self) -> None:
        if self.said_end or self.cut:
            return
        try:
            self.stream.write(b"", eof=True)
        except StreamReset:
            self.cut = True
        else:
            self.said_end = True

    def take(self) -> None:
        try:
            while not self.heard_end and (data := self.stream.receive_nowait()) is not None:
                self.heard += data
                self.heard_end = not data
        except StreamReset:
            self.cut = True

    def check(self, other: End) -> None:
        """What this end has heard of the other one."""
        assert self.heard == other.said[: len(self.heard)]
        if self.heard_end:
            assert other.said_end
            assert self.heard == other.said


@attrs.define(eq=False)
class Call:
    hubs: Hubs
    first: End
    relay: End
    answered: bool = False

    async def do(self, operation: tuple[str, int]) -> None:
        name, size = operation
        match name:
            case "upload":
                self.first.say(size)
            case "end upload":
                self.first.end()
            case "answer" if not self.answered and not self.relay.stream.broken:
                self.answered = True
                self.relay.stream.send_answer_nowait(b"a head")
            case "download" if self.answered:
                self.relay.say(size)
            case "end answer" if self.answered:
                self.relay.end()
            case "first takes":
                self.first.take()
            case "relay takes":
                self.relay.take()
            case "settle":
                await wait_all_tasks_blocked()
            case "first resets":
                self.first.stream.reset(StreamCode.CANCEL)
                self.first.cut = True
            case "relay resets":
                self.relay.stream.reset(StreamCode.TIMEOUT, in_line=size > 1000)
                self.relay.cut = True
            case "link is cut":
                self.hubs.link.cut()
            case "agent is locked":
                self.hubs.change(agent(state=AgentState.LOCKED), cluster())


OPERATIONS = st.one_of(
    st.tuples(st.sampled_from(["upload", "download"]), SIZES),
    st.tuples(
        st.sampled_from(["answer", "end upload", "end answer", "first takes", "relay takes", "settle"]),
        st.just(0),
    ),
)
FAULTS = st.tuples(
    st.sampled_from(["none", "first resets", "relay resets", "link is cut", "agent is locked"]), SIZES
)


@given(st.lists(OPERATIONS, max_size=14), FAULTS, st.lists(OPERATIONS, max_size=4))
def test_what_is_heard_was_said_and_an_end_is_one_that_was_said(
    before: list[tuple[str, int]], fault: tuple[str, int], after: list[tuple[str, int]]
) -> None:
    async def play() -> None:
        async with open_hubs() as hubs:
            opened, served = await hubs.streams()
            call = Call(hubs, End(opened), End(served))
            for operation in (*before, fault, *after):
                await call.do(operation)
            if fault[0] == "none":
                # Nothing was lost: everything arrives.
                for last in ("answer", "end upload", "end answer"):
                    await call.do((last, 0))
            for _ in range(100):
                # A congested link waits for acknowledgements, which come by time.
                await trio.sleep(0.1)
                call.first.take()
                call.relay.take()
                if all(end.heard_end or end.cut for end in (call.first, call.relay)):
                    break
            call.first.check(call.relay)
            call.relay.check(call.first)
            if fault[0] == "none":
                assert call.first.heard_end
                assert call.relay.heard_end
            await wait_all_tasks_blocked()
            assert (hubs.forwarded.count == 0) or not (call.first.cut or call.first.heard_end)

    trio.run(play, clock=MockClock(autojump_threshold=0))
