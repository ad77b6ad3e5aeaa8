"""How far the policies let an agent go on a cluster, summarised in one word for a list of clusters.

The summary ignores rules for single objects, and conditions.
"""

from __future__ import annotations

from collections.abc import Iterable

from auth.policy.rules import ANY, READ, RESOURCE_VERBS, WRITE, Effect, Rule

READS = frozenset({"get", "list", "watch"})
WRITES = frozenset(RESOURCE_VERBS) - READS

ALL, ONLY_READ, SOME, NOTHING = "all", "read", "some", "nothing"


def extent(rules: Iterable[Rule]) -> str:
    """Return ALL, ONLY_READ (all reads or some, and no write), SOME or NOTHING, for rules of one scope.

    What needs an approval is part of SOME.
    """
    about = [rule for rule in rules if rule.about_resources]
    reads, writes = (_part(about, kind, verbs) for kind, verbs in ((READ, READS), (WRITE, WRITES)))
    match reads, writes:
        case ("nothing", "nothing"):
            return NOTHING
        case ("all", "all"):
            return ALL
        case (_, "nothing"):
            return ONLY_READ
        case _:
            return SOME


def _part(rules: list[Rule], kind: str, verbs: frozenset[str]) -> str:
    """The same for reads alone, or writes alone: "all", "some" or "nothing"."""
    about = [rule for rule in rules if rule.verbs & {ANY, kind, *verbs}]
    whole = [
        rule for rule in about if _unrestricted(rule) and (rule.verbs & {ANY, kind} or verbs <= rule.verbs)
    ]
    denies = any(rule.effect is Effect.DENY for rule in whole)
    if denies or all(rule.effect is Effect.DENY for rule in about):
        return "nothing"
    asks = any(rule.effect is Effect.ASK for rule in whole)
    return "all" if not asks and any(rule.allows for rule in whole) else "some"


def _unrestricted(rule: Rule) -> bool:
    """Whether it is about every object."""
    resources = () if rule.resources is None else rule.resources.patterns
    every = not resources or (ANY in resources and not any(each.startswith("!") for each in resources))
    return every and not (rule.groups or rule.names or rule.namespaces or rule.when)
