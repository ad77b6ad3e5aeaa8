"""What `deploy/prometheus` and `deploy/grafana` hold, and the metrics that they ask for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "hawse.rules.yaml"
CASES = (PROMETHEUS / "hawse.tests.yaml", PROMETHEUS / "hawse.long.tests.yaml")
DASHBOARD = ROOT / "deploy" / "grafana" / "hawse.json"
# Metrics that only a hub on PostgreSQL has.
ONLY_POSTGRES = frozenset({"hawse_directory_rolled_back"})

_METRIC = re.compile(r"\b((?:hawse|process)_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
# Prometheus adds them when it scrapes.
_TARGET_LABELS = frozenset({"job", "instance"})


@cache
def rules() -> Mapping[str, Mapping[str, Any]]:
    """The alerts by name."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@cache
def panels() -> list[Mapping[str, Any]]:
    """All panels of the dashboard, those that begin a row included."""
    return list(json.loads(DASHBOARD.read_text())["panels"])


def dashboard_expressions() -> list[str]:
    """The expressions of the dashboard, with values for its variables."""
    found = [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    return [each.replace("$__rate_interval", "5m").replace("$cluster", ".*") for each in found]


def asked_for() -> dict[str, set[str]]:
    """The metrics that rules and dashboard name, each with the labels that its selectors name."""
    found: dict[str, set[str]] = {}
    for expression in (*(rule["expr"] for rule in rules().values()), *dashboard_expressions()):
        for name, matchers in _METRIC.findall(expression):
            found.setdefault(name, set()).update(set(_MATCHER.findall(matchers)) - _TARGET_LABELS)
    return found


def shown(pages: Iterable[str]) -> dict[str, set[str]]:
    """The metrics of the pages that were scraped, each with its labels.

    A metric without a sample, as of webhooks where there is none, has any label: "*".
    """
    found: dict[str, set[str]] = {}
    for page in pages:
        for name in re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE):
            found.setdefault(name, {"*"})
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                labels = found.setdefault(sample.name, set())
                labels.discard("*")
                labels.update(sample.labels)
    return found


def missing(names: Iterable[str], pages: Iterable[str]) -> dict[str, set[str]]:
    """Those of the metrics that no page has, with no labels, and those that lack a label, with it."""
    have = shown(pages)
    wrong = {name: set[str]() for name in names if name not in have}
    for name, labels in asked_for().items():
        if name in names and name in have and "*" not in have[name] and (lacks := labels - have[name]):
            wrong[name] = lacks
    return wrong
