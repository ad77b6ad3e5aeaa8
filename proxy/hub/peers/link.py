"""A link: the session between this hub and another one, in which both sides open streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import attrs
import msgspec
import trio

from proxy.exchange.groups import HUB_GROUP
from proxy.hub.membership.member import Member
from proxy.hub.peers.streams import PeerStream
from tunnel import Detached, Draining, Session, SessionClosed, Stream, StreamReset, TooManyStreams

# The kinds of the streams of group 0: the heads that open them.
ROUTES: Final = b"routes"
ASK: Final = b"ask"
RESUME: Final = b"resume"

# Of a question and of its answer, as JSON: a list of 10,000 calls is below this.
ASK_BYTES_MAX: Final = 1024 * 1024
# What an operator's command waits for one hub.
ASK_S: Final = 2.0


class LinkDown(Exception):
    """There is no link to the hub, or it opens no stream now. Nothing was sent."""


class AskFailed(Exception):
    """The other hub has not answered a question, or has refused it."""


@attrs.define(eq=False)
class PeerLink:
    """A session with another hub, from its greeting to its end, over one connection after the other."""

    member: Member
    """The other hub, as read when the link began; `Members.by_boot` has its newest row."""
    session: Session
    _context: int = attrs.field(init=False)

    @_context.default
    def _own_context(self) -> int:
        return self.session.add_context(HUB_GROUP, b"hub")

    @property
    def up(self) -> bool:
        """Whether a stream may be opened now."""
        return self.session.may_open

    def open(self, kind: bytes, *, eof: bool = False) -> Stream:
        """Open a stream of the hub's own, under group 0; with `eof` nothing follows. Raises LinkDown."""
        try:
            return self.session.open_stream(kind, context=self._context, eof=eof)
        except (SessionClosed, Draining, TooManyStreams, Detached) as error:
            raise LinkDown(f"hub {self.member.hub} takes no stream: {error}") from error

    async def ask(
        self, question: str, body: Mapping[str, object], within_s: float = ASK_S
    ) -> dict[str, object]:
        """Ask the other hub (see `Mesh.answers`), and return its answer.

        Raises LinkDown when nothing was asked; AskFailed after `within_s`, when the link is lost, and for a
        refusal: the other hub may have acted then.
        """
        asked = json.dumps({"question": question, "body": body}, separators=(",", ":")).encode()
        if len(asked) > ASK_BYTES_MAX:
            raise ValueError(f"a question of {len(asked)} bytes, the limit is {ASK_BYTES_MAX}")
        with trio.move_on_after(within_s):
            async with PeerStream(self.open(ASK)) as stream:
                try:
                    await stream.send_all(asked)
                    await stream.send_eof()
                    return read_object(await receive_message(stream))
                except (StreamReset, ValueError) as error:
                    reason = error.reason if isinstance(error, StreamReset) else str(error)
                    raise AskFailed(f"hub {self.member.hub}: {reason}") from error
        raise AskFailed(f"hub {self.member.hub} has not answered within {within_s:g} s")


async def receive_message(stream: PeerStream) -> bytes:
    """Return all bytes of a stream; raises ValueError above ASK_BYTES_MAX, and StreamReset."""
    received = bytearray()
    while data := await stream.receive_some():
        received += data
        if len(received) > ASK_BYTES_MAX:
            raise ValueError(f"the message exceeds {ASK_BYTES_MAX} bytes")
    return bytes(received)


def read_object(data: bytes) -> dict[str, object]:
    """Return a JSON object; raises ValueError.

    Texts have no lone surrogates, which json.loads lets through: the trail could not write such a text.
    """
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("the message is no JSON object")
    return value
