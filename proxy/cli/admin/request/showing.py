"""Prints a request for approval: first what the call would do, then what is not seen, then how to decide."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

from audit.escape import escape
from proxy.cli.admin.policy.differences import as_written
from proxy.cli.output import Object, objects, since, text, texts

# An exec has its whole command in the summary.
SUMMARY_CHARACTERS_MAX = 120
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
# As the hub makes them: such an id and digest need no quotes in a shell.
_ID = re.compile(r"[0-9a-f-]{1,64}", re.ASCII)


def print_request(request: Object) -> None:
    """Print a request. Agents and clusters have chosen much of it, so each line is escaped."""
    for line in _lines(request):
        click.echo(line)


def sentence_of(request: Object) -> str:
    """Return the state of a request in one line."""
    agent, what = text(request, "agent"), text(request, "what")
    # A hub whose store is away answers the id and the state alone.
    about = f" of agent:{agent} on {text(request, 'cluster')} ({what})" if agent else ""
    return f"request {text(request, 'id')}{about} is {_state(request)}"


def followed_line(request: Object) -> str:
    """Return a request in one line as it changes; while it waits, with what the call would do."""
    if text(request, "state") != "pending":
        return sentence_of(request)
    flags = "".join(f"; {flag}" for flag in texts(request, "flags"))
    return f"{sentence_of(request)}: {summary_of(request)}{flags}"


def summary_of(request: Object) -> str:
    """Return what the call would do, cut for one line."""
    summary = text(request, "summary")
    if len(summary) > SUMMARY_CHARACTERS_MAX:
        return f"{summary[:SUMMARY_CHARACTERS_MAX]}..."
    return summary or "-"


def commands_of(request: Object, hub: str | None) -> Iterator[str]:
    """Yield how to decide: who may approve, and the commands to copy."""
    found, digest = text(request, "id"), text(request, "shown")
    yield ""
    yield f"may approve  {escape(who_may_approve(request))}"
    if text(request, "state") != "pending" or _ID.fullmatch(found) is None:
        return
    if not request.get("may_approve"):
        yield f"you may not  {escape(text(request, 'may_not'))}"
    admin = "hawse admin" if hub is None else f"hawse admin --hub {shlex.quote(hub)}"
    if request.get("too_large") is False and _DIGEST.fullmatch(digest) is not None:
        yield f"to approve   {admin} request approve {found} --shown {digest}"
    yield f"to deny      {admin} request deny {found} --because TEXT"


def who_may_approve(request: Object) -> str:
    """Return the approvers of the rule in words."""
    owner = text(request, "owner")
    words = {
        "owner": f"the agent's owner ({owner})",
        "!owner": f"any approver but the agent's owner ({owner})",
        "any": "any approver",
    }
    return ", or ".join(words.get(each, each) for each in texts(request, "approvers"))


def _lines(request: Object) -> Iterator[str]:
    owner, state = text(request, "owner"), _state(request)
    yield escape(f"agent:{text(request, 'agent')} (owner {owner}) on {text(request, 'cluster')}")
    for key in ("what", "kubectl", "call"):
        if line := text(request, key):
            yield escape(f"  {line}")
    if claimed := text(request, "claimed_reason"):
        yield escape(f"claimed reason: {claimed}")
    yield escape(f"rule {text(request, 'rule')}: {text(request, 'reason') or '-'}")
    yield escape(f"request {text(request, 'id')} is {state}, opened {since('created_at')(request)}")
    yield ""
    if request.get("view_deleted"):
        yield "what was shown is deleted"
        return
    yield escape(text(request, "summary") or "no effect was found")
    for flag in texts(request, "flags"):
        yield escape(f"  ! {flag}")
    if request.get("interactive"):
        yield "  ! what the agent sends after the call has begun is not seen"
    if request.get("too_large"):
        yield "  ! the difference is too large to be shown, so the request cannot be approved"
    yield from _changes(request)
    yield from _block("not compared: it differs from one dry run to the next", texts(request, "left_out"))
    yield from _block("notes", texts(request, "notes"))
    if body := text(request, "body"):
        yield from _block(text(request, "body_is"), body.split("\n"))


def _changes(request: Object) -> Iterator[str]:
    # JSON has backslashes of its own, which are printed as they are.
    changes = objects(request, "changes")
    if changes:
        yield ""
        yield "changes"
    for change in changes:
        yield as_written(f"  {text(change, 'path')}")
        for sign, key in (("-", "before"), ("+", "after")):
            if change.get(key) is not None:
                yield as_written(f"    {sign} {text(change, key)}")


def _block(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield title
    for line in lines:
        yield as_written(f"  {line}")


def _state(request: Object) -> str:
    state, by = text(request, "state"), text(request, "decided_by")
    match state:
        case "pending":
            return f"pending, until {text(request, 'expires_at')}"
        case "approved":
            return f"approved by {by}, for one call until {text(request, 'valid_until')}"
        case "denied":
            return f"denied by {by}: {text(request, 'answer')}"
        case "using" | "used":
            return f"{'in use' if state == 'using' else 'used'}, approved by {by}"
        case _:
            because = text(request, "because")
            return f"{state}: {because}" if because else state
