"""Warnings about policies that are valid, and probably not what their author wants."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import attrs

from auth.policy.ask import WAIT_S, Ask
from auth.policy.bundled import GUARD
from auth.policy.match import Bundle
from auth.policy.rules import Effect, Policy, Rule
from auth.policy.subjects import may_overlap

# Further rules that ask are not compared with each other: a pair takes some microseconds.
ASKS_COMPARED_MAX = 100
ASK_WARNINGS_MAX = 20


@attrs.frozen
class _Asking:
    policy: Policy
    rule: Rule
    ask: Ask

    def __str__(self) -> str:
        return f"{self.policy.name}/{self.rule.id}"


def change_warnings(before: Bundle, after: Bundle) -> list[str]:
    """Return warnings about a change of all policies."""
    warnings = []
    rules = (rule for policy in after.policies for rule in policy.rules if rule.enabled)
    if all(rule.effect is Effect.DENY for rule in rules):
        warnings.append("no rule allows anything: every call but discovery is denied")
    if GUARD in _names(before) - _names(after):
        warnings.append("the guard policy is removed: agents may then use ways around RBAC")
    return warnings


def ask_warnings(bundle: Bundle, names: Iterable[str]) -> list[str]:
    """Return at most ASK_WARNINGS_MAX warnings about the rules that ask in the named policies."""
    given = frozenset(names)
    asking = [
        _Asking(policy, rule, rule.ask)
        for policy in bundle.policies
        for rule in policy.rules
        if rule.enabled and rule.ask is not None
    ]
    warnings = itertools.chain(_long_waits(asking, given), _different_approvers(asking, given))
    return list(itertools.islice(warnings, ASK_WARNINGS_MAX))


def _long_waits(asking: Iterable[_Asking], given: frozenset[str]) -> Iterator[str]:
    for one in asking:
        if one.policy.name in given and one.ask.wait_s > WAIT_S:
            yield (
                f"{one} waits {one.ask.wait_s} s: many load balancers end a silent request after 60 s, so "
                f"wait at most {WAIT_S} s"
            )


def _different_approvers(asking: list[_Asking], given: frozenset[str]) -> Iterator[str]:
    for one, other in itertools.combinations(asking[:ASKS_COMPARED_MAX], 2):
        if (
            not given.isdisjoint({one.policy.name, other.policy.name})
            and set(one.ask.approvers) != set(other.ask.approvers)
            and may_overlap(one.policy, one.rule, other.policy, other.rule)
        ):
            yield (
                f"{one} and {other} may ask about the same call, and their approvers differ: the first of "
                "them decides"
            )


def _names(bundle: Bundle) -> set[str]:
    return {policy.name for policy in bundle.policies}
