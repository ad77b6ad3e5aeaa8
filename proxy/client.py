"""The client's side of one HTTP/1.1 connection, over any trio stream: the Outbound of one exchange at a time.

An answer is held to the same strictness as a request: what could be read in two ways is broken, not repaired,
because somebody behind the API server (a pod behind `services/proxy`) may have written it. A connection is
used again only when an exchange ended cleanly on both sides; one that asked for an upgrade never is, whatever
the answer was (a refused upgrade whose connection lives on is CVE-2018-1002105).
"""

from __future__ import annotations

from collections.abc import Callable

import h11
import trio

from proxy.exchange import Failure, OutboundBroken, Processed, StreamCode
from proxy.head import RequestHead, ResponseHead
from proxy.strict import BadRequest, BadResponse, HeadScanner, check_response_head
from proxy.wire import BODY_BYTES_MAX, H11_BYTES_MAX, BodyEnd, RawStream, pull_body

# 100s and 103s before the answer; a server that sends more plays for time.
INTERIM_MAX = 32


class ClientConnection:
    """A connection to a server. `send_request` begins an exchange, `aclose` ends it.

    With `release` a connection that may be used again is handed to it by `aclose` instead of being closed.
    It owns the stream.
    """

    def __init__(
        self, stream: trio.abc.Stream, *, release: Callable[[ClientConnection], None] | None = None
    ) -> None:
        self._stream = stream
        self._release = release
        self._scanner = HeadScanner()
        self._h11 = h11.Connection(h11.CLIENT)
        self._end = BodyEnd()
        self._in_exchange = False
        self._answered = False
        self._upgrade = False
        self._eof = False
        self._torn = False

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent: nothing of the last exchange is left on either side."""
        return (
            not (self._torn or self._eof or self._upgrade)
            and self._h11.our_state in {h11.IDLE, h11.DONE}
            and self._h11.their_state in {h11.IDLE, h11.DONE}
            and not len(self._scanner)
        )

    @property
    def answered(self) -> bool:
        """Whether the head of this exchange's answer has come."""
        return self._answered

    async def send_request(self, head: RequestHead) -> None:
        """Begin an exchange: send the head, and the end of the request when it has no body.

        Raises OutboundBroken. The API server may have seen the request as soon as this was called.
        """
        assert not self._in_exchange, "an exchange is still in progress on this connection"
        assert self.reusable, "this connection cannot be used again"
        self._in_exchange = True
        self._answered = False
        self._upgrade = head.upgrade is not None
        self._end = BodyEnd()
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=H11_BYTES_MAX)
        data = self._h11.send(h11.Request(method=head.method, target=head.target, headers=list(head.headers)))
        if head.body_length == 0:
            self._h11.send(h11.EndOfMessage())
        await self._write(data)

    async def send_body(self, data: bytes) -> None:
        """Send bytes of the request's body."""
        await self._write(self._h11.send(h11.Data(data=data)))

    async def end_body(self) -> None:
        """Say that the request's body is whole."""
        if self._h11.our_state is h11.SEND_BODY:
            data = self._h11.send(h11.EndOfMessage())
            if data:
                await self._write(data)

    async def receive_head(self) -> ResponseHead:
        """Return the final head, or a 101 that was asked for; other 1xx are dropped.

        Raises OutboundBroken: UPSTREAM_RESET when the connection ends first, PROTOCOL for an answer that
        cannot be trusted.
        """
        for _ in range(INTERIM_MAX):
            event = await self._receive_head_event()
            if isinstance(event, h11.Response) or event.status_code == 101:
                self._answered = True
                return ResponseHead(event.status_code, event.reason, tuple(event.headers))
        raise self._malformed(f"more than {INTERIM_MAX} interim answers")

    async def _receive_head_event(self) -> h11.InformationalResponse | h11.Response:
        try:
            while (raw := self._scanner.take_head()) is None:
                self._scanner.feed(await self._receive())
                if self._eof:
                    raise self._lost("the server closed the connection before its answer")
            check_response_head(raw)
            self._h11.receive_data(raw)
            event = self._h11.next_event()
        except BadRequest as exc:
            raise self._malformed(exc.message) from exc
        except (BadResponse, h11.RemoteProtocolError) as exc:
            raise self._malformed(str(exc)) from exc
        assert isinstance(event, h11.InformationalResponse | h11.Response), "a whole head that was checked"
        return event

    async def receive_body(self) -> bytes:
        """Return body bytes as they come; b"" at the clean end.

        Raises OutboundBroken when the connection ends, or breaks its framing, before that.
        """
        while True:
            data = self.receive_body_nowait()
            if data is not None:
                if not data:
                    await trio.lowlevel.checkpoint()
                return data
            self._h11.receive_data(await self._receive())

    def receive_body_nowait(self) -> bytes | None:
        """Return body bytes that are already here, b"" at the clean end, None when there is a wait."""
        if len(self._scanner) and not self._end.reached:
            self._h11.receive_data(self._scanner.take_rest())
        reached = self._end.reached
        try:
            data = pull_body(self._h11, self._end)
        except h11.RemoteProtocolError as exc:
            if self._eof:
                raise self._lost("the server closed the connection within its answer") from exc
            raise self._malformed("the framing of the answer's body is broken") from exc
        if self._end.reached and not reached:
            # Bytes behind the answer that nobody asked for: they stay, so that the connection is not reused.
            self._scanner.feed(self._h11.trailing_data[0])
        return data

    def upgraded(self) -> RawStream:
        """Return the raw stream after a 101; the bytes that came with it are its first."""
        assert self._h11.our_state is h11.SWITCHED_PROTOCOL, "upgraded() without a 101"
        return RawStream(self._stream, self._scanner.take_rest(), ended=self._eof)

    async def aclose(self) -> None:
        """End the exchange: release the connection if it can be used again, else cut it.

        Once an exchange; what was released belongs to the next one.
        """
        was_in_exchange, self._in_exchange = self._in_exchange, False
        if self._release is not None and self.reusable:
            if was_in_exchange:
                self._release(self)
            await trio.lowlevel.checkpoint()
            return
        self._torn = True
        await trio.aclose_forcefully(self._stream)

    async def _receive(self) -> bytes:
        if self._eof:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            data = await self._stream.receive_some(BODY_BYTES_MAX)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        self._eof = not data
        return bytes(data)

    async def _write(self, data: bytes) -> None:
        if self._torn:
            raise self._lost("the connection broke before")
        self._torn = True  # until all of it is sent
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise self._lost(f"the connection broke: {exc}") from exc
        self._torn = False

    def _lost(self, reason: str) -> OutboundBroken:
        return self._broken(StreamCode.UPSTREAM_RESET, reason)

    def _malformed(self, reason: str) -> OutboundBroken:
        return self._broken(StreamCode.PROTOCOL, reason)

    def _broken(self, code: StreamCode, reason: str) -> OutboundBroken:
        self._torn = True
        return OutboundBroken(Failure(code, Processed.YES if self._answered else Processed.MAYBE, reason))
