"""Applies changed guardrails to open calls, and ends those that are denied now.

Open calls are judged as new ones would be. A denied call is ended like a revoked one at the hub: the client
is cut, or gets the reason if its answer has not begun. A request that is not sent yet is not sent.
"""

from __future__ import annotations

from typing import NoReturn

import trio

from proxy.message.failure import Failure, Processed, StreamCode
from proxy.relay.denied import GuardrailDenied
from proxy.relay.exchange import Upstream
from proxy.relay.guardrails import Guardrails
from tunnel.net.fairness import Chunks

# The interval of checks: half of the two seconds within which a change takes effect. A kubelet takes up to a
# minute to update a mounted ConfigMap.
CHECK_S = 1.0
# The interval of checks for conditions that depend on the time.
TIMED_EVERY_S = 10.0


async def run_guardrails(guardrails: Guardrails, upstream: Upstream) -> NoReturn:
    """Check the files every CHECK_S, and end the calls that changes deny; never returns."""
    judged_at = trio.current_time()
    while True:
        await trio.sleep(CHECK_S)
        due = guardrails.timed and trio.current_time() - judged_at >= TIMED_EVERY_S
        if guardrails.look() or due:
            judged_at = trio.current_time()
            await end_denied(guardrails, upstream)


async def end_denied(guardrails: Guardrails, upstream: Upstream) -> None:
    """End each open call that the guardrails deny now."""
    slices = Chunks()
    for call in upstream.underway:
        if slices.over:
            await slices.next()
        try:
            guardrails.check(call.claims, call.info)
        except GuardrailDenied as denied:
            call.revoke(Failure(StreamCode.REVOKED, Processed.MAYBE, denied.failure.reason))
