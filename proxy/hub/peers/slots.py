"""The question of one hub to another whether a relay there keeps its slot (proxy.hub.relays.shared_limit).

The body names the relay's `session`, and the `instance` of the relay that wants the slot. The answer has
`answers`: whether the first relay answers. Another session, or one that drains, does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

import attrs
import trio

from proxy.hub.peers.asks import Answer
from proxy.hub.peers.link import AskFailed, LinkDown, PeerLink
from proxy.hub.peers.links import HubLinks
from proxy.hub.relays.relay_limit import ANSWER_S

ANSWERS: Final = "answers"
# How long the other hub may take. It probes its relay for ANSWER_S.
ASKED_S: Final = ANSWER_S + 1.0
# A link that is lost is dialled each second.
LOOK_S: Final = 0.2


class SlotKeeper(Protocol):
    """A hub's part in the limit of relays over all hubs."""

    async def answers(self, session: str, instance: str) -> bool: ...


@attrs.frozen
class SlotQuestions:
    """Asks and answers over the links of a hub."""

    links: HubLinks
    answers: dict[str, Answer]
    """Those of the mesh."""

    async def ask(self, hub_boot: str, session: str, instance: str) -> bool:
        """Return whether a relay at another hub answers; waits for the link until cancelled.

        Each failure is followed by another question: a link is lost for a moment when a network is.
        """
        body = {"session": session, "instance": instance}
        while True:
            link = self.links.link_to(hub_boot)
            if link is not None:
                try:
                    return (await link.ask(ANSWERS, body, ASKED_S)).get("answers") is True
                except (LinkDown, AskFailed):
                    pass
            await trio.sleep(LOOK_S)

    def answer_by(self, keeper: SlotKeeper) -> None:
        """Answer what the other hubs ask."""

        async def answer(_: PeerLink, body: Mapping[str, object]) -> dict[str, object]:
            session, instance = body.get("session"), body.get("instance")
            if not isinstance(session, str) or not isinstance(instance, str):
                raise AskFailed("the question names no session, or no instance")
            return {"answers": await keeper.answers(session, instance)}

        self.answers[ANSWERS] = answer
