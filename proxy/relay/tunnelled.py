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
from proxy.relay.exchange import Upstream, describe
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

        def serve(stream: Stream) -> None:
            nursery.start_soon(handle_stream, stream, upstream, verifier, nursery)

        session.on_stream(serve)
        try:
            await session.wait_closed()
        finally:
            session.on_stream(None)
        # All its streams are broken with it; nobody is left to hear their answers.
        nursery.cancel_scope.cancel()


async def handle_stream(
    stream: Stream, upstream: Upstream, verifier: Verifier, nursery: trio.Nursery
) -> None:
    """Serve one stream to its end. Cancelled: the hub is told that the relay is going away."""
    try:
        await _serve(stream, upstream, verifier, nursery)
    except Refused as refused:
        failure = refused.failure
        log.info("refused %r: %s", stream, describe(failure))
        if isinstance(refused, GuardrailDenied):
            # It is the cluster's answer, and whole: for the agent to read, and for the hub to record.
            with suppress(StreamReset):
                stream.send_answer_nowait(refused.head.encode(), refused.body, eof=True)
        else:
            stream.reset(failure.code, processed=failure.processed, reason=failure.reason)
    except trio.Cancelled:
        # Behind the last byte that was sent, so that it is no clean end and takes nothing back.
        stream.reset(
            StreamCode.DRAINING, processed=Processed.MAYBE, reason="the relay is going away", in_line=True
        )
        raise
    except Exception:
        # The wrapper around a stream's task: a bug in one must not end the others.
        log.exception("%r failed by a fault of ours", stream)
        stream.reset(StreamCode.INTERNAL, reason="the relay failed by a fault of its own", in_line=True)
    finally:
        stream.close_nowait()


async def _serve(stream: Stream, upstream: Upstream, verifier: Verifier, nursery: trio.Nursery) -> None:
    claims = verifier.of_context(stream.context)
    try:
        request = RequestHead.decode(stream.head)
    except HeadError as error:
        raise refusal(StreamCode.PROTOCOL, str(error)) from error
    await upstream.carry(TunnelInbound(stream, request, nursery), request, claims)
