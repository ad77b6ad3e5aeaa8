"""Words for decisions, and the answer of `hawse admin policy explain`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from audit.escape import escape
from proxy.cli.output import Object, objects, text, texts

# By the API's words for a decision.
DECIDED = {"allow": "allowed", "deny": "denied", "ask": "asked"}


def print_decision(found: Object) -> None:
    """Print how a request would be decided."""
    for line in _lines(found):
        click.echo(escape(line))


def _lines(found: Object) -> Iterator[str]:
    if text(found, "refused"):
        yield f"denied before any policy: {text(found, 'refused')}"
    yield f"{DECIDED.get(text(found, 'decision'), 'denied')} by {_rule(found)}"
    ask = found.get("ask")
    if isinstance(ask, dict):
        yield f"may approve: {', '.join(texts(ask, 'approvers'))}"
        wait = text(ask, "wait_s")
        yield (
            f"{f'a call waits up to {wait} s' if wait != '0' else 'a call does not wait'} for the approval, "
            f"which is valid for {text(ask, 'valid_for_s')} s"
        )
    if text(found, "unapprovable"):
        yield f"such a call is refused without asking: {text(found, 'unapprovable')}"
    for other in objects(found, "other_asks") if "other_asks" in found else []:
        approvers = ", ".join(texts(other, "approvers"))
        yield f"{_rule(other)} asks too, and does not decide: {approvers} may approve there"
    if found.get("max_duration_s") is not None:
        yield f"for at most {text(found, 'max_duration_s')} s"
    if text(found, "message"):
        # What the agent reads of a call that waits depends on the approver.
        yield text(found, "message") if ask else f"message to the agent: {text(found, 'message')}"
    yield f"policies for this agent and cluster: {', '.join(texts(found, 'bound')) or 'none'}"
    yield f"bundle {text(found, 'bundle')}; the cluster's own RBAC decides after it"


def _rule(found: Object) -> str:
    return "/".join(part for part in (text(found, "policy"), text(found, "rule")) if part)
