"""Checks a policy document and reports all its faults at once, each with line, path, value and limit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

from auth.policy.ask import (
    APPROVERS_MAX,
    NOT_OWNER,
    OWNER,
    PERSON_CHARACTERS_MAX,
    VALID_FOR_S,
    VALID_FOR_S_MAX,
    WAIT_S,
    WAIT_S_MAX,
    Ask,
    wrong_approver,
)
from auth.policy.checker import Checker
from auth.policy.patterns import Resources, Urls
from auth.policy.rules import METHOD_VERBS, VERBS, ClusterSelector, Effect, LabelTerm, Policy, Rule
from auth.policy.text import Item, PolicyError, Source, read, shown

API_VERSION = "hawse.dev/v1"
POLICY_KIND = "Policy"

RULE_FIELDS = (
    *("id", "effect", "enabled", "verbs", "apiGroups", "resources", "resourceNames", "namespaces"),
    *("acrossNamespaces", "nonResourceURLs", "when", "obligations", "reason", "instead", "ask"),
)
ASK_FIELDS = ("approvers", "wait", "validFor", "interactive", "dryRun", "show")

RULES_PER_POLICY_MAX = 1000
# kubectl shows at most 1,000 bytes of a Status, which must hold these texts and the rest of the message.
ADVICE_CHARACTERS_MAX = 200
CONTACT_CHARACTERS_MAX = 100
DESCRIPTION_CHARACTERS_MAX = 1000
DURATION_S_MAX = 24 * 3600

# RBAC checks these verbs while it serves other requests. No request has them.
_VIRTUAL_VERBS = frozenset({"bind", "escalate", "impersonate", "use", "approve", "sign", "attest"})

_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
# The syntax of cluster labels and their selectors: Kubernetes' own, since operators reuse the same labels
# there.
_LABEL_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LABEL_KEY = re.compile(rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL_NAME}")
LABEL_VALUE = re.compile(rf"(?:{_LABEL_NAME})?")
_NAME_PATTERN = re.compile(r"!?[A-Za-z0-9*._:@+=~-]+")
_SLUG_PATTERN = re.compile(r"[a-z0-9*-]+")
_GROUP_PATTERN = re.compile(r"!?[a-z0-9*.-]*")
_RESOURCE_PATTERN = re.compile(r"!?(?:\*|[a-z0-9.-]+)(?:/(?:\*|[a-z0-9.-]+))?")
_URL_PATTERN = re.compile(r"\*|/[A-Za-z0-9._~!$&'()+,=:@/-]*\*?")
_NAMED_GROUP_PATTERN = re.compile(r"[a-z0-9*.-]*[a-z0-9][a-z0-9*.-]*")
_DURATION = re.compile(r"(?:([0-9]{1,4})h)?(?:([0-9]{1,5})m)?(?:([0-9]{1,6})s)?")


CheckCondition: TypeAlias = Callable[[str], str]
"""Returns what is wrong with a condition; empty if it is valid."""


def policy_of(item: Item, source: Source, check_condition: CheckCondition) -> Policy:
    """Check a parsed document; raises PolicyError."""
    checker = Checker(source.file)
    policy = _Reader(checker, check_condition).policy(item, source)
    if checker.faults:
        raise PolicyError(checker.faults)
    return policy


def kind_of(item: Item) -> str:
    """The kind that a document states."""
    if isinstance(item.value, dict):
        kind = item.value.get("kind")
        if kind is not None and isinstance(kind.value, str):
            return kind.value
    return ""


def name_of(source: Source) -> str:
    """The name of a document's policy; empty if it cannot be read."""
    try:
        document = read(source).data()
    except PolicyError:
        return ""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return name if isinstance(name, str) else ""


class _Reader:
    def __init__(self, checker: Checker, check_condition: CheckCondition) -> None:
        self._check = checker
        self._check_condition = check_condition

    def policy(self, item: Item, source: Source) -> Policy:
        check = self._check
        fields = check.mapping(
            item, ("apiVersion", "kind", "metadata", "spec"), required=("kind", "metadata", "spec")
        )
        check.choice(fields.get("apiVersion"), [API_VERSION])
        check.choice(fields.get("kind"), [POLICY_KIND])
        metadata: dict[str, Item] = {}
        if "metadata" in fields:
            metadata = check.mapping(
                fields["metadata"], ("name", "owner", "contact", "description"), required=("name",)
            )
        check.text(metadata.get("description"), DESCRIPTION_CHARACTERS_MAX)
        spec: dict[str, Item] = {}
        if "spec" in fields:
            spec = check.mapping(fields["spec"], ("bind", "clusters", "rules"), required=("bind", "rules"))
        bind = check.mapping(spec["bind"], ("teams", "agents")) if "bind" in spec else {}
        if "bind" in spec and isinstance(spec["bind"].value, dict) and not bind:
            check.fault(spec["bind"], 'binds no agent: name teams or agents (teams: ["*"] is all)')
        what = "a name of a-z, 0-9 and '-', in which * stands for any characters"
        return Policy(
            name=check.name(metadata.get("name"), "policy name"),
            rules=self._rules(spec["rules"]) if "rules" in spec else (),
            teams=check.names(bind.get("teams"), _SLUG_PATTERN, what),
            agents=check.names(bind.get("agents"), _SLUG_PATTERN, what),
            clusters=self._clusters(spec["clusters"]) if "clusters" in spec else ClusterSelector(),
            owner=check.text(metadata.get("owner"), CONTACT_CHARACTERS_MAX),
            contact=check.text(metadata.get("contact"), CONTACT_CHARACTERS_MAX),
            source=source,
            data=item.data(),
        )

    def _clusters(self, item: Item) -> ClusterSelector:
        check = self._check
        fields = check.mapping(item, ("names", "matchLabels", "matchExpressions"))
        terms: list[LabelTerm] = []
        if "matchLabels" in fields:
            labels = fields["matchLabels"]
            if not isinstance(labels.value, dict):
                check.fault(labels, "must be a mapping of labels to values")
            else:
                for key, value in labels.value.items():
                    self._label_key(value, key)
                    terms.append(LabelTerm(key, "In", frozenset({self._label_value(value)})))
        if "matchExpressions" in fields:
            terms += [self._term(entry) for entry in check.items(fields["matchExpressions"])]
        what = "a cluster's name, in which * stands for any characters"
        return ClusterSelector(
            check.names(fields.get("names"), re.compile("!?" + _SLUG_PATTERN.pattern), what), tuple(terms)
        )

    def _term(self, item: Item) -> LabelTerm:
        check = self._check
        fields = check.mapping(item, ("key", "operator", "values"), required=("key", "operator"))
        operator = check.choice(fields.get("operator"), _OPERATORS)
        key = fields.get("key")
        text = key.value if key is not None and isinstance(key.value, str) else ""
        if key is not None:
            self._label_key(key, text)
        values = check.items(fields["values"]) if "values" in fields else []
        if operator and (operator in {"In", "NotIn"}) != ("values" in fields):
            check.fault(item, f"{operator} {'needs' if operator in {'In', 'NotIn'} else 'takes no'} values")
        return LabelTerm(text, operator, frozenset(self._label_value(value) for value in values))

    def _label_key(self, item: Item, key: str) -> None:
        if LABEL_KEY.fullmatch(key) is None:
            self._check.fault(item, f"{shown(key)} is not a label by Kubernetes' rules")

    def _label_value(self, item: Item) -> str:
        if not isinstance(item.value, str) or LABEL_VALUE.fullmatch(item.value) is None:
            self._check.fault(item, f"{shown(item.value)} is not a label value by Kubernetes' rules")
            return ""
        return item.value

    def _rules(self, item: Item) -> tuple[Rule, ...]:
        rules: list[Rule] = []
        first: dict[str, int] = {}
        for entry in self._check.items(item, RULES_PER_POLICY_MAX):
            rule = self._rule(entry)
            if rule.id and rule.id in first:
                self._check.fault(
                    entry, f"the id {shown(rule.id)} is taken by the rule in line {first[rule.id]}"
                )
            first.setdefault(rule.id, entry.line)
            rules.append(rule)
        return tuple(rules)

    def _rule(self, item: Item) -> Rule:
        check = self._check
        fields = check.mapping(item, RULE_FIELDS, required=("id", "effect", "verbs"))
        text = check.choice(fields.get("effect"), ("allow", "deny", "ask"))
        effect = Effect(text) if text else Effect.DENY
        name = "a name, in which * stands for any characters and a leading ! excludes"
        resource = (
            "a resource such as pods, pods/log, pods/*, */scale, * or */*, or one excluded by a leading !"
        )
        denies = effect is not Effect.ALLOW
        resources = check.patterns(fields.get("resources"), _RESOURCE_PATTERN, resource)
        across = check.patterns(fields.get("acrossNamespaces"), _RESOURCE_PATTERN, resource)
        urls = check.patterns(
            fields.get("nonResourceURLs"), _URL_PATTERN, "a path such as /metrics, or /logs/* with one last *"
        )
        rule = Rule(
            id=check.name(fields.get("id"), "rule id"),
            effect=effect,
            verbs=self._verbs(fields.get("verbs")),
            groups=check.names(
                fields.get("apiGroups"), _GROUP_PATTERN, 'an API group such as apps, or "" for the core'
            ),
            resources=None if resources is None else Resources(resources, denies),
            names=check.names(fields.get("resourceNames"), _NAME_PATTERN, name),
            namespaces=check.names(fields.get("namespaces"), _NAME_PATTERN, name),
            across=None if across is None else Resources(across, denies),
            urls=None if urls is None else Urls(urls),
            when=self._when(fields.get("when")),
            max_duration_s=self._obligations(fields.get("obligations"), denies=effect is Effect.DENY),
            enabled=check.flag(fields.get("enabled"), default=True),
            reason=check.text(fields.get("reason"), ADVICE_CHARACTERS_MAX),
            instead=check.text(fields.get("instead"), ADVICE_CHARACTERS_MAX),
            line=item.line,
            ask=self._ask(fields["ask"]) if "ask" in fields else None,
        )
        self._check_rule(item, fields, rule)
        return rule

    def _check_rule(self, item: Item, fields: Mapping[str, Item], rule: Rule) -> None:
        """Find faults between fields that are valid by themselves."""
        fault = self._check.fault
        if rule.allows and rule.resources is None and rule.urls is None:
            fault(item, "a rule that allows must name what it allows: resources, nonResourceURLs, or both")
        if rule.resources is None and rule.urls is not None:
            for key in ("apiGroups", "resourceNames", "namespaces"):
                if key in fields:
                    fault(fields[key], "does not apply to nonResourceURLs: the rule must name resources, too")
        if rule.across is not None and (rule.allows or rule.namespaces is None):
            fault(fields["acrossNamespaces"], "belongs to a rule that denies or asks by namespaces")
        if rule.effect is Effect.ASK and "ask" not in fields:
            fault(item, "the field ask is missing: a rule that asks names who may approve")
        if rule.effect is not Effect.ASK and "ask" in fields:
            fault(fields["ask"], "belongs to a rule with the effect ask")
        methods = rule.verbs & set(METHOD_VERBS)
        if methods and not rule.about_urls:
            fault(
                fields["verbs"],
                f"{', '.join(sorted(methods))} are verbs of nonResourceURLs alone, and there are none here",
            )
        if rule.allows and (rule.reason or rule.instead):
            key = "reason" if rule.reason else "instead"
            message = "belongs to a rule that denies or asks: an allowed request needs no explanation"
            fault(fields[key], message)

    def _verbs(self, item: Item | None) -> frozenset[str]:
        if item is None:
            return frozenset()
        verbs = set()
        for entry in self._check.items(item):
            verb = entry.value
            if isinstance(verb, str) and verb in VERBS:
                verbs.add(verb)
            elif isinstance(verb, str) and verb in _VIRTUAL_VERBS:
                self._check.fault(
                    entry,
                    f"{shown(verb)} is a verb that RBAC checks within other requests; no request has it",
                )
            else:
                hint = " (exec, attach and portforward are create of the subresource)"
                self._check.fault(entry, f"{shown(verb)} is no verb: one of {', '.join(VERBS)}{hint}")
        return frozenset(verbs)

    def _when(self, item: Item | None) -> str:
        if item is None:
            return ""
        if not isinstance(item.value, str):
            self._check.fault(item, "must be text: a condition in CEL")
            return ""
        wrong = self._check_condition(item.value)
        if wrong:
            self._check.fault(item, wrong)
        return item.value

    def _obligations(self, item: Item | None, *, denies: bool) -> float | None:
        if item is None:
            return None
        fields = self._check.mapping(item, ("maxDuration",), required=("maxDuration",))
        if denies:
            self._check.fault(item, "belongs to a rule that allows or asks: a denied request has no duration")
        duration_s = self._duration_s(
            fields.get("maxDuration"), 1, DURATION_S_MAX, "1s to 24h, such as 90s or 1h30m"
        )
        return None if duration_s is None else float(duration_s)

    def _duration_s(self, item: Item | None, least_s: int, most_s: int, what: str) -> int | None:
        """A duration in the form of Go; None if there is none, or a fault."""
        if item is None:
            return None
        match = _DURATION.fullmatch(item.value) if isinstance(item.value, str) and item.value else None
        if match is not None:
            hours, minutes, seconds = (int(part or 0) for part in match.groups())
            length_s = hours * 3600 + minutes * 60 + seconds
            if least_s <= length_s <= most_s:
                return length_s
        self._check.fault(item, f"{shown(item.value)} is not a duration of {what}")
        return None

    def _ask(self, item: Item) -> Ask:
        check = self._check
        fields = check.mapping(item, ASK_FIELDS, required=("approvers",))
        wait_s = self._duration_s(fields.get("wait"), 0, WAIT_S_MAX, f"0s to {WAIT_S_MAX}s")
        valid_for_s = self._duration_s(
            fields.get("validFor"), 1, VALID_FOR_S_MAX, "1s to 1h, the life of a request"
        )
        return Ask(
            approvers=self._approvers(fields.get("approvers")),
            wait_s=WAIT_S if wait_s is None else wait_s,
            valid_for_s=VALID_FOR_S if valid_for_s is None else valid_for_s,
            interactive=check.flag(fields.get("interactive"), default=False),
            dry_run=check.names(
                fields.get("dryRun"),
                _NAMED_GROUP_PATTERN,
                "an API group that honours dryRun, such as *.example.com",
            ),
            show_env=check.choice(fields.get("show"), ["env"]) == "env",
        )

    def _approvers(self, item: Item | None) -> tuple[str, ...]:
        check, approvers = self._check, []
        for entry in check.items(item, APPROVERS_MAX) if item is not None else []:
            person = check.text(entry, PERSON_CHARACTERS_MAX)
            wrong = wrong_approver(person)
            if wrong:
                check.fault(entry, f"{shown(person)} {wrong}")
            elif person in approvers:
                check.fault(entry, f"{shown(person)} is listed twice")
            else:
                approvers.append(person)
        if item is not None and OWNER in approvers and NOT_OWNER in approvers:
            check.fault(item, f"{OWNER} and {NOT_OWNER} contradict each other")
        return tuple(approvers)
