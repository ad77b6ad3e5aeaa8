"""Guardrails that change: what is under way and does not pass any more is ended.

The calls under way are held against the new rules as new ones would be. One that is denied is ended as the
hub ends one that was revoked: its client is cut, or told why where its answer had not begun; and a request
that has not been sent yet is not sent.
"""

from __future__ import annotations

from typing import NoReturn

import trio

from proxy.message.failure import Failure, Processed, StreamCode
from proxy.relay.exchange import Upstream
from proxy.relay.guardrails import GuardrailDenied, Guardrails
from tunnel.net.fairness import Chunks

# Between two looks at the files: half of the two seconds within which a change ends what it denies. A kubelet
# takes up to a minute to bring a changed ConfigMap.
LOOK_S = 1.0
# Between two looks at what the time alone may have ended, by a condition.
TIMED_EVERY_S = 10.0


async def run_guardrails(guardrails: Guardrails, upstream: Upstream) -> NoReturn:
    """Look at the files every LOOK_S, and end what they deny from then on; never returns."""
    judged_at = trio.current_time()
    while True:
        await trio.sleep(LOOK_S)
        due = guardrails.timed and trio.current_time() - judged_at >= TIMED_EVERY_S
        if guardrails.look() or due:
            judged_at = trio.current_time()
            await end_denied(guardrails, upstream)


async def end_denied(guardrails: Guardrails, upstream: Upstream) -> None:
    """End each call under way that the guardrails would not let pass now."""
    slices = Chunks()
    async with trio.open_nursery() as nursery:
        for call in upstream.underway:
            if slices.over:
                await slices.next()
            try:
                guardrails.check(call.claims, call.info)
            except GuardrailDenied as denied:
                reason = denied.failure.reason
                nursery.start_soon(call.revoke, Failure(StreamCode.REVOKED, Processed.MAYBE, reason))
