"""Answers what the other hubs ask: one stream for a question and its answer, each a JSON object."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import attrs
import trio

from proxy.hub.peers.link import ASK_BYTES_MAX, AskFailed, PeerLink, read_object, receive_message
from proxy.hub.peers.streams import PeerStream
from tunnel import Processed, Stream, StreamCode, StreamReset

Answer = Callable[[PeerLink, dict[str, object]], Awaitable[dict[str, object]]]

# Questions of one hub that are answered at once. They come from operators, and from relays that dial.
ASKS_MAX: Final = 64
# For one question, from its stream's OPEN to the end of its answer. No hub waits that long for one.
ASK_LIFE_S: Final = 30.0

_log = logging.getLogger("hawse.hub.peers")


@attrs.define(eq=False)
class Answerer:
    """Answers questions by the handlers of their names."""

    answers: dict[str, Answer] = attrs.Factory(dict)
    _under_way: Counter[PeerLink] = attrs.Factory(Counter)

    async def answer(self, link: PeerLink, stream: Stream) -> None:
        """Answer the question of a stream."""
        if self._under_way[link] >= ASKS_MAX:
            refuse(stream, f"{ASKS_MAX} questions of this hub are under way, the limit")
            return
        self._under_way[link] += 1
        try:
            with trio.move_on_after(ASK_LIFE_S):
                async with PeerStream(stream) as asked:
                    await self._answer(link, asked)
        except StreamReset:
            pass  # the other hub waits no more, or the link is lost
        finally:
            self._under_way[link] -= 1
            if not self._under_way[link]:
                del self._under_way[link]

    async def _answer(self, link: PeerLink, asked: PeerStream) -> None:
        """Raises StreamReset."""
        try:
            fields = read_object(await receive_message(asked))
            answer = self.answers.get(str(fields.get("question")))
            body = fields.get("body")
            if answer is None or not isinstance(body, dict):
                raise AskFailed("this hub does not know that question")
            reply = json.dumps(await answer(link, body), separators=(",", ":")).encode()
            if len(reply) > ASK_BYTES_MAX:
                raise AskFailed(f"the answer has {len(reply)} bytes, the limit is {ASK_BYTES_MAX}")
        except (AskFailed, ValueError) as error:
            refuse(asked.raw, str(error))
            return
        except StreamReset:
            raise
        except Exception:
            # A fault in one answer affects nothing else of the hub.
            _log.exception("a question of hub %s failed by a fault of ours", link.member.hub)
            refuse(asked.raw, "the hub failed by a fault of its own", Processed.MAYBE)
            return
        await asked.send_all(reply)
        await asked.send_eof()


def refuse(stream: Stream, reason: str, processed: Processed = Processed.NO) -> None:
    """Refuse a stream of another hub."""
    stream.reset(StreamCode.REFUSED, processed=processed, reason=reason)
    stream.close_nowait()
