"""What the pages of policies show: a text with its rules marked, faults at their lines, differences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from proxy.console.base.api import Answer
from proxy.console.base.templating import plural
from proxy.console.views.fleet import State

# From the page's choices to seconds; the trail of a busy hub has a million calls a day.
SPANS: Mapping[str, int] = {"1h": 3600, "24h": 86400, "7d": 7 * 86400, "30d": 30 * 86400}
TONES: Mapping[str, str] = {
    "allow": "ok",
    "deny": "bad",
    "ask": "warn",
    "added": "ok",
    "removed": "bad",
    "edited": "info",
    "moved": "",
    "layout": "",
    "waiting": "",
    "running": "info",
    "done": "ok",
    "failed": "bad",
    "cancelled": "",
    "newly denied": "bad",
    "newly asked": "info",
    "newly allowed": "warn",
}


def state(word: str) -> State:
    """Give a word of the API its colour."""
    return State(word, TONES.get(word, ""))


@attrs.frozen
class Rule:
    """A rule in the text of its policy."""

    id: str
    effect: str
    enabled: bool
    reason: str
    line: int

    @property
    def tone(self) -> str:
        """The mark of its lines."""
        return self.effect if self.enabled else "off"

    @property
    def badge(self) -> State:
        """Its effect, and whether it is on."""
        return state(self.effect) if self.enabled else State(f"{self.effect}, off", "")


def rules_of(policy: Answer) -> list[Rule]:
    """Read the rules of a policy of the API, in their order."""
    return [
        Rule(rule["id"], rule["effect"], rule["enabled"], rule["reason"], rule["line"])
        for rule in policy["rules"]
    ]


def counted(rules: Sequence[Rule]) -> str:
    """Count rules: `3 allow, 1 ask, 12 deny, 1 off`."""
    counts = {
        effect: sum(rule.enabled and rule.effect == effect for rule in rules)
        for effect in ("allow", "ask", "deny")
    }
    counts["off"] = sum(not rule.enabled for rule in rules)
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none"


@attrs.frozen
class Block:
    """Lines of a text: those of one rule, or those between rules."""

    first: int
    lines: Sequence[str]
    rule: Rule | None = None


def marked(document: str, rules: Iterable[Rule]) -> list[Block]:
    """Split the text of a policy into its rules and what is between them."""
    lines = document.rstrip("\n").split("\n")
    starts = sorted((rule.line, rule) for rule in rules if 1 <= rule.line <= len(lines))
    return list(_blocks(lines, starts))


def _blocks(lines: Sequence[str], starts: Sequence[tuple[int, Rule]]) -> Iterator[Block]:
    at = 1
    for number, (line, rule) in enumerate(starts):
        if at < line:
            yield Block(at, lines[at - 1 : line - 1])
        end = starts[number + 1][0] if number + 1 < len(starts) else len(lines) + 1
        # Comments and empty lines at the end belong to the next rule.
        while end > line + 1 and (not (text := lines[end - 2].strip()) or text.startswith("#")):
            end -= 1
        yield Block(line, lines[line - 1 : end - 1], rule)
        at = end
    if at <= len(lines):
        yield Block(at, lines[at - 1 :])


@attrs.frozen
class Line:
    """A line of a text that was checked, with what is wrong in it."""

    number: int
    text: str
    faults: Sequence[str]


def checked(text: str, faults: Iterable[Mapping[str, Any]]) -> list[Line]:
    """Put faults at their lines; those of no line are not among them."""
    by_line: dict[int, list[str]] = {}
    for fault in faults:
        said = f"{fault['path']}: {fault['message']}" if fault["path"] else fault["message"]
        by_line.setdefault(fault["line"], []).append(said)
    return [
        Line(number, line, by_line.get(number, ()))
        for number, line in enumerate(text.rstrip("\n").split("\n"), 1)
    ]


@attrs.frozen
class RuleChange:
    """The difference of one rule."""

    rule: str
    state: State
    effect: State
    lines: Sequence[tuple[str, str]]


@attrs.frozen
class Change:
    """The difference of one policy."""

    policy: str
    state: State
    settings: Sequence[tuple[str, str]]
    rules: Sequence[RuleChange]

    @property
    def text(self) -> str:
        """What changed, in a few words."""
        if self.state.text == "layout":
            return "Only comments and layout."
        counts: dict[str, int] = {}
        for rule in self.rules:
            counts[rule.state.text] = counts.get(rule.state.text, 0) + 1
        parts = [f"{plural(count, 'rule')} {word}" for word, count in counts.items()]
        return ", ".join(["settings", *parts] if self.settings else parts)


_SIGNS = {"+": "plus", "-": "minus"}


def changes(diff: Iterable[Mapping[str, Any]]) -> list[Change]:
    """Read a difference of the API."""
    return [
        Change(
            each["policy"],
            state(each["change"]),
            _signed(each["settings"]),
            [
                RuleChange(rule["rule"], state(rule["change"]), state(rule["effect"]), _signed(rule["lines"]))
                for rule in each["rules"]
            ],
        )
        for each in diff
    ]


def _signed(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Split each line into its sign's name and its text; the sign stays in front of it."""
    return [(_SIGNS.get(line[:1], ""), line) for line in lines]


def progress(simulation: Mapping[str, Any]) -> str:
    """Word how far a simulation is."""
    if simulation["state"] == "waiting":
        return "It starts when the one before it has ended."
    if simulation["of"]:
        return f"{simulation['read']:,} of {simulation['of']:,} events of the trail"
    return f"{simulation['read']:,} events of the trail"


def verdict(result: Mapping[str, Any]) -> tuple[str, str]:
    """Word a simulation's result, with its tone."""
    counts = (("deny", "denied"), ("ask about", "asked"), ("allow", "allowed"))
    changed = [
        f"{verb} {plural(count, 'call')}" for verb, word in counts if (count := result[f"newly_{word}"])
    ]
    if changed:
        said = ", and ".join(filter(None, (", ".join(changed[:-1]), changed[-1])))
        return f"It would newly {said}.", "bad" if result["newly_denied"] else "warn"
    if not result["calls"]:
        return "There was no call in that time, so this shows nothing.", "warn"
    return f"It would decide all {plural(result['calls'], 'call')} as they were decided.", "ok"
