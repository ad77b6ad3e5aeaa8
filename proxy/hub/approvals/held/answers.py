"""The answers to asked calls that are not forwarded.

Each is a 403 whose causes name the request and its state for programs. The sentence begins with the request's
id: the answer to an upgrade may be cut, and has the sentence alone then. No answer has Retry-After, because
client-go would repeat the call by itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy.hub.approvals.request import Request, State
from proxy.hub.authorize.admission import Call, Refusal
from proxy.hub.authorize.decisions import denial
from proxy.message.failure import Processed
from proxy.message.status import with_processed

NO_STORE = "the hub's store is not available, so an approval can neither be asked for nor used"
REPEAT = "repeat the same command after it is approved"
_SAID = {
    State.PENDING: f"is pending: {REPEAT}",
    State.APPROVED: "is approved: repeat the same command",
    State.DENIED: "was denied",
    State.USING: "is used by another call",
    State.USED: "was used already: repeat the command later, and it asks again",
    State.EXPIRED: "has expired: repeat the command, and it asks again",
    State.CANCELLED: "was cancelled",
    State.STALE: "is stale",
    State.REVOKED: "was revoked",
}
# The agent's next step, for states that no longer answer a repeat of the command.
_NEXT = "repeat the command, and it asks again if a rule asks about it"


class RefusedError(Exception):
    """The call is answered with this refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refusal_of(call: Call, request: Request) -> Refusal:
    """Return the refusal of a call, by the state of its request."""
    state = request.state
    said, why = _SAID[state], request.because
    if state is State.DENIED:
        why = request.answer
    if why:
        said = f"{said}: {why}"
    if state in {State.CANCELLED, State.STALE, State.REVOKED}:
        said = f"{said}; {_NEXT}"
    elif state is State.PENDING:
        said = f"{said}; {call.verdict.rule} asks for an approval"
        if request.new.reason:
            said = f"{said}: {request.new.reason}"
    how = REPEAT if state is State.PENDING else ""
    causes = {"ApprovalRequest": request.id, "ApprovalState": state.value, "How": how}
    if state is State.DENIED:
        causes["Why"] = why
    return refusal(call, f"approval request {request.id} {said}", causes)


def refusal(call: Call, message: str, causes: Mapping[str, str], *, status: int = 403) -> Refusal:
    """Return a refusal with causes, and with those of the rule that asks."""
    verdict = call.verdict
    ours: list[object] = [{"reason": key, "message": text} for key, text in causes.items() if text]
    details: dict[str, object] = {"causes": ours}
    if call.head.upgrade is None:
        # There is no room for more in the answer to an upgrade.
        details = dict(denial(verdict, call.agent, call.cluster, call.info).details)
        rest = details.get("causes")
        if isinstance(rest, list):
            ours += [each for each in rest if each.get("reason") not in causes]
        details["causes"] = ours
    return Refusal(status, verdict.decision.rule, message, decision=verdict.recorded, details=details)


def plain_refusal(call: Call, status: int, message: str) -> Refusal:
    """Return a refusal that names no request."""
    return Refusal(status, call.verdict.decision.rule, message, decision=call.verdict.recorded)


def unavailable(call: Call, why: str) -> Refusal:
    """Return the refusal of a call while a part of the hub fails."""
    return plain_refusal(call, 503, with_processed(why, Processed.NO))
