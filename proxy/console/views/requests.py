"""Requests for approval: the rows of the list, and one request as its page shows it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import attrs

from proxy.console.base.api import Answer, at
from proxy.console.base.templating import plural
from proxy.console.views.decision import rule_path
from proxy.console.views.fleet import State
from proxy.console.views.listing import ROWS

WAITING = "pending"
# In the order of the tabs. The ends without a decision, or after one, share a tab.
TABS = (
    ("", "All"),
    ("pending", "Waiting"),
    ("approved,using", "Approved"),
    ("used", "Used"),
    ("denied", "Denied"),
    ("expired,cancelled,stale,revoked", "Ended unused"),
)
DECIDED = ",".join(states for states, _ in TABS[2:])

_STATES = {
    "pending": State("waiting", "info"),
    "approved": State("approved", "ok"),
    "using": State("in use", "ok"),
    "used": State("used", ""),
    "denied": State("denied", "bad"),
    "expired": State("expired", ""),
    "cancelled": State("cancelled", ""),
    "stale": State("out of date", "warn"),
    "revoked": State("revoked", "bad"),
}
# Of calls that may last for hours after they were approved.
_LASTING = ("/exec ", "/attach ", "/portforward ", "/proxy ")
# Longer values are folded: more than a phone shows at once.
VALUE_LINES_MAX = 12
VALUE_CHARACTERS_MAX = 400
# How the JSON of objects and lists begins.
_SEVERAL_LINES = frozenset("{[")
# Around the lines of a text that differ.
LINES_BESIDE = 2
_APPROVERS = {"any": "any approver", "!owner": "any approver but the agent's owner"}


def state_of_request(request: Answer) -> State:
    """Word a request's state."""
    return _STATES.get(request["state"], State(request["state"], ""))


def request_path(request_id: str) -> str:
    """The path of a request's page."""
    return at("/requests/{}", request_id)


@attrs.frozen
class Listed:
    """A page of requests. The API does not count all that match, so a page knows its neighbours alone."""

    filters: Mapping[str, str]
    offset: int
    rows: int
    more: bool

    @property
    def newer(self) -> str:
        """The address of the page before; empty on the first one."""
        return self.address(offset=max(0, self.offset - ROWS)) if self.offset else ""

    @property
    def older(self) -> str:
        """The address of the next page; empty on the last one."""
        return self.address(offset=self.offset + self.rows) if self.more else ""

    @property
    def text(self) -> str:
        """`101–200`; nothing if all rows are on the page."""
        if not self.offset and not self.more:
            return ""
        return f"{self.offset + 1:,}–{self.offset + self.rows:,}" if self.rows else "no more"

    @property
    def filtered(self) -> bool:
        """Whether it can have left rows out."""
        return any(self.filters.values())

    def address(self, offset: int = 0, **changed: str) -> str:
        """Return the address with other filters, from its beginning by default."""
        given = {name: value for name, value in {**self.filters, **changed}.items() if value}
        if offset:
            given["offset"] = str(offset)
        return f"/requests?{urlencode(given)}" if given else "/requests"


@attrs.frozen
class Value:
    """A side of a difference."""

    sign: str
    """`minus`, `plus`, or `same` for what does not differ or is not shown."""
    text: str
    fold: str = ""
    """The beginning of a long text, which is shown until the text is opened."""
    size: str = ""


@attrs.frozen
class Difference:
    """A path and its values before and after."""

    path: str
    word: str
    """`added`, `removed` or `changed`."""
    tone: str
    values: Sequence[Value]


def differences(changes: Iterable[Mapping[str, Any]]) -> list[Difference]:
    """Word the changes of the API, in their order."""
    return [_difference(change["path"], change["before"], change["after"]) for change in changes]


def _difference(path: str, before: str | None, after: str | None) -> Difference:
    if before is None or after is None:
        word, tone = ("added", "ok") if before is None else ("removed", "bad")
    else:
        word, tone = "changed", "warn"
    return Difference(path or "the whole object", word, tone, [*_values(before, after)])


def _values(before: str | None, after: str | None) -> Iterable[Value]:
    if before == after and after is not None:
        # A value that is not shown, on both sides.
        yield value_of("same", after)
        return
    old, new = _several_lines(before), _several_lines(after)
    if old and new:
        yield from _parted(old, new)
        return
    for sign, text in (("minus", before), ("plus", after)):
        if text is not None:
            yield value_of(sign, text)


def _parted(old: Sequence[str], new: Sequence[str]) -> Iterable[Value]:
    """Leave out the lines that both begin or end with, but for those beside the difference.

    A real diff takes the square or the cube of the number of lines, and an agent chooses them.
    """
    limit = min(len(old), len(new))
    head = next((at for at in range(limit) if old[at] != new[at]), limit)
    tail = next((at for at in range(limit - head) if old[-1 - at] != new[-1 - at]), limit - head)
    yield from _equal(head, new[max(0, head - LINES_BESIDE) : head], first=True)
    for sign, lines in (("minus", old), ("plus", new)):
        if middle := lines[head : len(lines) - tail]:
            yield _folded(sign, "\n".join(middle))
    end = len(new) - tail
    yield from _equal(tail, new[end : end + LINES_BESIDE], first=False)


def _equal(count: int, beside: Sequence[str], *, first: bool) -> Iterable[Value]:
    left_out = count - len(beside)
    more = [f"… {plural(left_out, 'more line')}"] if left_out else []
    if count:
        yield _folded("same", "\n".join([*more, *beside] if first else [*beside, *more]))


def _several_lines(text: str | None) -> list[str]:
    value = _decoded(text or "")
    return value.split("\n") if isinstance(value, str) and "\n" in value.rstrip("\n") else []


def value_of(sign: str, text: str) -> Value:
    """Word a text of the API, folded if it is long.

    The JSON of an object gets several lines, and so does that of a text with several lines. Others stay as
    they are: short values, words about a value, and JSON that was cut.
    """
    value = _decoded(text)
    if isinstance(value, str) and "\n" in value.rstrip("\n"):
        text = value
    elif isinstance(value, dict | list) and value:
        text = json.dumps(value, indent=2, ensure_ascii=False)
    return _folded(sign, text)


def _decoded(text: str) -> object:
    # The JSON of a number or a short text is shown as it is.
    if text[:1] not in _SEVERAL_LINES and r"\n" not in text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _folded(sign: str, text: str) -> Value:
    lines = text.count("\n") + 1
    if lines <= VALUE_LINES_MAX and len(text) <= VALUE_CHARACTERS_MAX:
        return Value(sign, text)
    size = f"{lines:,} lines" if lines > VALUE_LINES_MAX else f"{len(text):,} characters"
    return Value(sign, text, f"{' '.join(text[:200].split())[:80]}…", size)


def approvers_of(request: Answer) -> list[str]:
    """Word who may approve: persons as they are, and the words of a rule as sentences."""
    owner = request["owner"]
    words = {**_APPROVERS, "owner": f"the agent's owner, {owner}" if owner else "the agent's owner"}
    return [words.get(name, name) for name in request["approvers"]]


def rule_of(request: Answer) -> str:
    """The page with the text of the rule at the version that asked; empty without a policy."""
    policy, _, rule = request["rule"].partition("/")
    return rule_path(policy, rule, request["bundle"])


def commands_of(request: Answer) -> list[str]:
    """The commands that do what the page does."""
    words = ["hawse", "admin", "request"]
    lines = [[*words, "show", request["id"]]]
    if request["may_approve"]:
        lines.append([*words, "approve", request["id"], "--shown", request["shown"]])
    if may_deny(request):
        lines.append([*words, "deny", request["id"], "--because", "WHY"])
    return [*map(shlex.join, lines)]


def may_deny(request: Answer) -> bool:
    """Return whether it can be denied, by each person who sees it."""
    waits: bool = request["state"] == WAITING
    return waits


def may_revoke(request: Answer) -> bool:
    """Return whether an approval is left that can be revoked, or a call by it that may still be under way."""
    lasts = any(part in request["what"] for part in _LASTING)
    return request["state"] in {"approved", "using"} or (request["state"] == "used" and lasts)


@attrs.frozen
class Outcome:
    """What became of a request, beside the word for its state, and a sentence about what follows."""

    text: str
    then: str = ""


def outcome_of(request: Answer) -> Outcome:
    """Word what follows the state of a request: who decided, and what the agent can do."""
    by = request["decided_by"]
    again = "Nothing reached the cluster. The same call asks again."
    match request["state"]:
        case "pending":
            return Outcome("", "The agent waits, or repeats its command later.")
        case "approved":
            return Outcome(f"by {by}", "The agent can make this call once.")
        case "using":
            return Outcome(f"approved by {by}", "The call is under way.")
        case "used":
            return Outcome(f"approved by {by}", "The same call asks again.")
        case "denied":
            return Outcome(f"by {by}", "The agent reads the reason. Nothing reached the cluster.")
        case "expired" if by:
            return Outcome(f"approved by {by}, but not used in time", again)
        case "expired":
            return Outcome("not decided in time", again)
        case "stale":
            return Outcome(f"approved by {by}, but the call would do something else now", again)
        case "revoked":
            return Outcome(f"by {by}" if by else "", "The agent can no longer make this call by it.")
        case "cancelled":
            return Outcome("", again)
        case _:
            return Outcome("")
