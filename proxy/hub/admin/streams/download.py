"""A body that is made while it is sent, for as long as its caller may have it."""

from __future__ import annotations

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.hub.admin.streams.cut import CutError
from proxy.hub.admin.verbs.answers import Download
from proxy.hub.admin.verbs.callers import Caller

# How often the caller is checked, and how long one piece may wait for the client.
CHECK_EVERY_S = 1.0
STALLED_S = 30.0


class DownloadReply(Response):
    """One download, as Starlette's answer. It owns the chunks.

    Once the answer has begun, a fault can be told by a cut alone: a body that ends early is no complete one.
    """

    def __init__(self, caller: Caller, download: Download) -> None:
        super().__init__(
            media_type=download.media_type,
            headers={
                "cache-control": "no-store",
                "x-content-type-options": "nosniff",
                "content-disposition": f'attachment; filename="{download.filename}"',
            },
        )
        del self.headers["content-length"]
        self._caller = caller
        self._chunks = download.chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            checked_at = trio.current_time()
            while chunk := await self._chunks.receive():
                if trio.current_time() >= checked_at + CHECK_EVERY_S:
                    checked_at = trio.current_time()
                    if self._caller.still_valid() is not None:
                        raise CutError
                with trio.move_on_after(STALLED_S) as sending:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if sending.cancelled_caught:
                    raise CutError
        finally:
            with trio.CancelScope(shield=True):
                await self._chunks.aclose()
        await send({"type": "http.response.body", "body": b""})
