"""Tunnel mode: the streams that the hub opens in the session that this relay dialled.

A stream's identity is the context that its OPEN names: the hub's token, verified once and kept there. A
refusal is a RESET that says whether the API server can have seen the request, so the hub knows what it may
try again.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress

import trio

from auth.succession import TrustedKeys
from proxy.exchange import Processed, StreamCode
from proxy.head import HeadError, RequestHead
from proxy.relay.exchange import Call, Upstream, describe
from proxy.relay.guardrails import GuardrailDenied
from proxy.relay.verify import Refused, Verifier, refusal
from proxy.tunnelled import HUB_GROUP, TunnelInbound
from tunnel import Context, Session, Stream
from tunnel.stream import StreamReset

log = logging.getLogger("hawse.relay")


async def serve_session(
    session: Session, upstream: Upstream, *, hub_keys: TrustedKeys, issuer: str, cluster_id: str
) -> None:
    """Serve the hub's streams until the session ends; a fault in one reaches no other."""

    def hub_clock() -> float:
        # From WELCOME and PING, which TLS vouches for; a relay whose own clock is wrong still works.
        return time.time() + (session.peer_clock_offset_ms or 0) / 1000

    verifier = Verifier(hub_keys, issuer, cluster_id, hub_clock)

    def learn(context: Context) -> None:
        if context.group == HUB_GROUP:
            verifier.learn([context.payload.decode("ascii", "replace")])

    # Before any stream, which may come under a token by a key that is learned from one of these.
    session.on_context(learn)
    async with trio.open_nursery() as nursery:
        server = SessionServer(upstream, verifier, nursery)
        session.on_stream(server.serve)
        try:
            await session.wait_closed()
        finally:
            session.on_stream(None)
            server.leave()
        # All its streams are broken with it; nobody is left to hear their answers.
        nursery.cancel_scope.cancel()


class SessionServer:
    """Serves the streams of one session: a small request without a task, any other by one of `nursery`."""

    def __init__(self, upstream: Upstream, verifier: Verifier, nursery: trio.Nursery) -> None:
        self._upstream = upstream
        self._verifier = verifier
        self._nursery = nursery
        self.awaited: set[AwaitedAnswer] = set()

    def serve(self, stream: Stream) -> None:
        """Begin with a stream; a fault in it reaches no other."""
        try:
            claims = self._verifier.of_context(stream.context)
            try:
                request = RequestHead.decode(stream.head)
            except HeadError as error:
                raise refusal(StreamCode.PROTOCOL, str(error)) from error
            call = self._upstream.prepare(request, claims)
        except Refused as refused:
            refuse(stream, refused)
            return
        except Exception:
            fail(stream)
            return
        AwaitedAnswer(self, stream, call).begin()

    def hand_over(self, stream: Stream, call: Call) -> None:
        """Have a task go on."""
        self._nursery.start_soon(handle_stream, stream, call, self._nursery)

    def leave(self) -> None:
        """End what no task sees to; the tasks are ended by their nursery."""
        for answer in list(self.awaited):
            answer.leave()


class AwaitedAnswer:
    """A request that was sent without a wait, and whose answer no task awaits.

    Most answers are small and come in one piece, so there is nothing for a task to do but to be switched to.
    What needs one after all gets it where it stands.
    """

    __slots__ = ("_call", "_server", "_stream")

    def __init__(self, server: SessionServer, stream: Stream, call: Call) -> None:
        self._server = server
        self._stream = stream
        self._call = call

    def begin(self) -> None:
        """Send the request."""
        self._server.awaited.add(self)
        try:
            if self._call.outbound.start_nowait(self._on_input):
                self._stream.on_reset(self._hand_over)
            else:
                self._hand_over()
        except Exception:
            self._fail()

    def _on_input(self) -> None:
        try:
            if not self._call.outbound.look():
                return
            answer = self._call.outbound.take_whole()
            if answer is None:
                self._hand_over()
                return
            head, body = answer
            self._forget()
            self._stream.send_answer_nowait(self._call.upstream.pass_head(head).encode(), body, eof=True)
            self._stream.close_nowait()
            self._call.end()
        except Exception:
            self._fail()

    def _hand_over(self) -> None:
        self._forget()
        self._call.outbound.leave_to_a_task()
        self._server.hand_over(self._stream, self._call)

    def leave(self) -> None:
        """End it because the relay is going away."""
        self._forget()
        say_leaving(self._stream)
        self._end()

    def _fail(self) -> None:
        self._forget()
        fail(self._stream)
        self._end()

    def _forget(self) -> None:
        self._server.awaited.discard(self)
        self._stream.on_reset(None)

    def _end(self) -> None:
        self._call.outbound.cut_nowait()
        self._call.end()
        self._stream.close_nowait()


async def handle_stream(stream: Stream, call: Call, nursery: trio.Nursery) -> None:
    """Serve one stream to its end. Cancelled: the hub is told that the relay is going away."""
    try:
        await call.carry(TunnelInbound(stream, call.request, nursery))
    except Refused as refused:
        refuse(stream, refused)
    except trio.Cancelled:
        say_leaving(stream)
        raise
    except Exception:
        # The wrapper around a stream's task: a bug in one must not end the others.
        fail(stream)
    finally:
        stream.close_nowait()


def refuse(stream: Stream, refused: Refused) -> None:
    """Say that the request is refused."""
    failure = refused.failure
    log.info("refused %r: %s", stream, describe(failure))
    if isinstance(refused, GuardrailDenied):
        # It is the cluster's answer, and whole: for the agent to read, and for the hub to record.
        with suppress(StreamReset):
            stream.send_answer_nowait(refused.head.encode(), refused.body, eof=True)
    else:
        stream.reset(failure.code, processed=failure.processed, reason=failure.reason)
    stream.close_nowait()


def say_leaving(stream: Stream) -> None:
    """Say that there will be no more, behind the last byte: so it is no clean end and takes nothing back."""
    stream.reset(
        StreamCode.DRAINING, processed=Processed.MAYBE, reason="the relay is going away", in_line=True
    )


def fail(stream: Stream) -> None:
    """Say that a bug of ours has ended the stream; for whoever has just caught it."""
    log.exception("%r failed by a fault of ours", stream)
    stream.reset(StreamCode.INTERNAL, reason="the relay failed by a fault of its own", in_line=True)
    stream.close_nowait()
