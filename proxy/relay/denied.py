"""The refusal of a request by the cluster owner's guardrails.

This is a module of its own because a relay without guardrails does not load `proxy.relay.guardrails`, whose
rules and patterns take 15 ms of a start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.message.failure import Failure, Processed, StreamCode
from proxy.message.relay_marks import DECISION_HEADER
from proxy.message.status import status_response
from proxy.relay.verify import Refused

if TYPE_CHECKING:
    from auth.policy.advice import Advice


class GuardrailDenied(Refused):
    """A guardrail denies a request; `head` and `body` are the answer."""

    def __init__(self, advice: Advice, method: str) -> None:
        message = f"the guardrails of this cluster: {advice.message}"
        super().__init__(Failure(StreamCode.FORBIDDEN, Processed.NO, message))
        self.rule = advice.rule
        mark = ((DECISION_HEADER, f"guardrails {advice.rule}".encode("ascii")),)
        self.head, body = status_response(403, "", message, details=_details(advice), headers=mark)
        self.body = b"" if method == "HEAD" else body


def _details(advice: Advice) -> dict[str, object]:
    """The denial for programs, as causes of a Kubernetes Status."""
    causes = [{"reason": "GuardrailDenied", "message": advice.rule, "field": "rule"}]
    if advice.instead:
        causes.append({"reason": "GuardrailDenied", "message": advice.instead, "field": "instead"})
    causes.append({"reason": "GuardrailDenied", "message": advice.ask, "field": "ask"})
    return {"causes": causes}
