"""Finds out what an asked call would do, by requests of the hub under the agent's name."""

from __future__ import annotations

import attrs

from auth.policy.ask import Ask
from proxy.hub.approvals.preview.shapes import Preview, PreviewRefused
from proxy.hub.calls.calls import Calls
from proxy.hub.calls.live import LiveCall


@attrs.define(eq=False)
class Previewer:
    """Makes the previews of a hub."""

    calls: Calls

    async def preview(
        self, live: LiveCall, body: bytes, ask: Ask, *, like: str = ""
    ) -> Preview | PreviewRefused:
        """Return what the call would do, or the agent's answer.

        `like` is the effect of an earlier preview of the same call, to compare the two (`effect_fits`). A
        preview that fails for a while (a timeout, a relay that is away) is then refused with 503 instead of
        being another effect.

        Takes PREVIEW_S at most. The caller's scope cancels it when the call is ended or its client leaves
        (`LiveCall.interruptible`). Its streams are reset then, and its events say so. Raises nothing else.
        """
        raise NotImplementedError
