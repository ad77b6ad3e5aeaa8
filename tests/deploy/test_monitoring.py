"""The alerts and the dashboard: read by promtool, and held to the docs and to what they name."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.monitoring import (
    CASES,
    DASHBOARD,
    ROOT,
    RULES,
    asked_for,
    dashboard_expressions,
    panels,
    rules,
)
from tests.pages import anchors, unknown
from tests.programs import installed

RUNBOOKS = "https://hawse.example/source/"
# Metrics that each of several hubs has for the same cluster.
SHARED = ("hawse_relays", "hawse_relays_api_server_down", "hawse_calls_total")
PANELS = 14
# Grafana's units that fit the figures.
UNITS = {"short", "reqps", "s", "bytes", "percentunit"}


@pytest.fixture(scope="module")
def promtool() -> str:
    return installed("promtool", "prometheus")


def succeed(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=RULES.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cases() -> list[dict[str, Any]]:
    return [case for file in CASES for case in yaml.safe_load(file.read_text())["tests"]]


def test_promtool_accepts_the_rules_and_their_cases(promtool: str) -> None:
    succeed(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES.name)
    succeed(promtool, "test", "rules", *(file.name for file in CASES))


@pytest.mark.parametrize("alert", rules())
def test_each_alert_has_a_case_that_fires_one_that_does_not_and_one_without_its_series(alert: str) -> None:
    tried = [
        (bool(case["input_series"]), bool(each["exp_alerts"]))
        for case in cases()
        for each in case["alert_rule_test"]
        if each["alertname"] == alert
    ]
    assert set(tried) == {(True, True), (True, False), (False, False)}


@pytest.mark.parametrize("alert", rules())
def test_each_alert_says_what_to_run_and_names_its_runbook(alert: str) -> None:
    annotations = rules()[alert]["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    page, _, anchor = annotations["runbook_url"].removeprefix(RUNBOOKS).partition("#")
    assert anchor in anchors((ROOT / page).read_text())
    commands = re.findall(r"hawse [a-z][^;]*", annotations["description"])
    assert commands
    for command in commands:
        # As in a page: prose follows after a comma.
        words = re.sub(r"\{\{.*?\}\}", "NAME", command.split(", ")[0])
        assert unknown(words) == [], command


def test_each_runbook_has_an_alert() -> None:
    sections = {
        each for each in anchors((ROOT / "docs" / "operations.md").read_text()) if each.startswith("alert-")
    }
    assert sections == {rule["annotations"]["runbook_url"].partition("#")[2] for rule in rules().values()}


@pytest.mark.parametrize("alert", rules())
def test_an_alert_about_a_cluster_sums_over_the_hubs(alert: str) -> None:
    expression = rules()[alert]["expr"]
    for name in SHARED:
        for before in re.split(rf"\b{name}\b", expression)[:-1]:
            assert re.search(r"sum by \(cluster\) \((max_over_time\(|rate\()?$", before), expression


def test_promtool_parses_each_expression_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    recorded = [
        {"record": f"dashboard:{number}", "expr": expression}
        for number, expression in enumerate(dashboard_expressions())
    ]
    assert len(recorded) >= PANELS
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    succeed(promtool, "check", "rules", str(file))


def test_the_panels_have_ids_units_texts_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    real = [panel for panel in panels() if panel["type"] != "row"]
    assert len(real) == PANELS
    assert len({panel["title"] for panel in panels()}) == len(panels())
    for panel in real:
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["description"], panel["title"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    places = [panel["gridPos"] for panel in panels()]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


def test_the_dashboard_has_two_variables_and_no_data_source_of_its_own() -> None:
    text = DASHBOARD.read_text()
    assert set(re.findall(r'"uid": "([^"]*)"', text)) == {"hawse", "${datasource}"}
    listed = json.loads(text)["templating"]["list"]
    assert [variable["name"] for variable in listed] == ["datasource", "cluster"]
    used = set(re.findall(r"\$\{?(\w+)", text))
    assert used == {"datasource", "cluster", "__rate_interval"}


def test_no_label_is_chosen_by_an_agent() -> None:
    labels = set[str]().union(*asked_for().values())
    assert labels <= {"cluster", "status", "state", "result", "reason", "kind", "outcome"}
