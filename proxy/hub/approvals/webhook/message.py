"""A webhook's message about a request: the agent, the call and a link, without any value of an object. Pure.

An agent chooses the path of its call, and so a part of the text. Chat programs make links and mentions of
text. So the agent's text loses the characters of both, and Slack gets it in a span of code.
"""

from __future__ import annotations

import json
import re
import unicodedata
from datetime import UTC, datetime
from typing import Final

import attrs

from proxy.hub.approvals.request import Request, State
from proxy.hub.approvals.requests.outbox import OPENED

TEXT_CHARACTERS_MAX: Final = 300
# The beginnings of links and mentions, and the end of a span of code.
_ACTIVE: Final = re.compile(r"://|[@<>\[\]`|\\]")
_BLANKS: Final = re.compile(r"\s+")
_HEADINGS: Final = {
    OPENED: "Approval requested",
    State.APPROVED: "Approved by {}",
    State.DENIED: "Denied by {}",
    State.USED: "The approved call was made",
    State.EXPIRED: "The request has expired",
    State.CANCELLED: "The request was cancelled",
    State.STALE: "The object has changed, so the approval does not count",
    State.REVOKED: "The approval was revoked",
}


@attrs.frozen
class Message:
    """A request, and the names of what it is about."""

    event: str
    """OPENED, or the state that the request has come to."""
    request: Request
    agent: str
    cluster: str
    url: str
    """The request's page; empty without a console."""


def json_body(message: Message) -> bytes:
    """Return the message as an object for programs."""
    request, new = message.request, message.request.new
    what = {
        "id": request.id,
        "state": request.state,
        "agent": message.agent,
        "cluster": message.cluster,
        "what": plain(new.what),
        "reason": plain(new.reason),
        "claimed_reason": plain(new.view.claimed_reason),
        "rule": f"{new.policy}/{new.rule}",
        "interactive": new.interactive,
        "approvers": list(new.approvers),
        "created_at": _time(request.created_at),
        "expires_at": _time(request.expires_at),
        "decided_by": request.decided_by,
        "decided_at": None if request.decided_at is None else _time(request.decided_at),
        "url": message.url,
    }
    return json.dumps({"type": f"request.{message.event}", "request": what}).encode()


def slack_body(message: Message) -> bytes:
    """Return the message for a webhook of Slack, or of a program that takes the same."""
    request, new = message.request, message.request.new
    heading = _HEADINGS.get(message.event, message.event).format(_person(request.decided_by))
    where = message.url and f"<{message.url}|Show the request>"
    claimed = new.view.claimed_reason
    lines = [
        f"*{heading}*",
        f"Agent {_code(message.agent)} in cluster {_code(message.cluster)}: {_code(new.what)}",
        *([f"Its reason, as claimed: {_code(claimed)}"] if claimed else []),
        f"Rule {_code(f'{new.policy}/{new.rule}')}: {_escaped(plain(new.reason))}",
        where or _code(f"hawse admin request show {request.id}"),
    ]
    text = "\n".join(lines)
    section = {"type": "section", "text": {"type": "mrkdwn", "text": text, "verbatim": True}}
    # Other programs read `text` alone, and Slack shows it in notifications.
    body = {"text": text, "blocks": [section], "unfurl_links": False, "unfurl_media": False}
    return json.dumps(body).encode()


def plain(text: str) -> str:
    """Return text of one line without mentions, links and control characters, shortened."""
    visible = "".join([" " if _is_hidden(each) else each for each in text[: 2 * TEXT_CHARACTERS_MAX]])
    line = _BLANKS.sub(" ", _ACTIVE.sub(" ", visible)).strip()
    return line if len(line) <= TEXT_CHARACTERS_MAX else f"{line[: TEXT_CHARACTERS_MAX - 1]}…"


def _is_hidden(character: str) -> bool:
    """Whether a character is a control, a mark of direction, half a pair, or unassigned."""
    return unicodedata.category(character)[0] == "C"


def _code(text: str) -> str:
    # A span cannot be empty.
    return f"`{_escaped(plain(text)) or '-'}`"


def _person(name: str) -> str:
    """Return a person's name, which an operator has chosen, and which may be an address of mail."""
    return f"`{_escaped(name.replace('`', ' ')) or '-'}`"


def _escaped(text: str) -> str:
    # Slack decodes these three alone.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
