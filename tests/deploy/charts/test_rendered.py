"""What Helm renders of the chart, read from files that `make charts` holds equal to Helm's output."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from deploy.charts import ROOT
from tests.deploy.charts.kubernetes import VERSIONS, faults
from tests.deploy.charts.rendered import RENDERED, first_line, path
from tests.deploy.charts.sets import SETS, Objects, by_name


def rendered(name: str) -> Objects:
    text = path(name).read_text()
    assert text.startswith(first_line()), (
        "the chart has changed since: run make charts-rendered, then make charts"
    )
    return by_name([each for each in yaml.safe_load_all(text) if each])


@pytest.mark.parametrize("name", RENDERED)
def test_the_objects_are_those_of_cluster_add(name: str) -> None:
    assert rendered(name) == SETS[name].expected


def test_the_oldest_and_the_newest_kubernetes_take_each_object() -> None:
    for item in rendered("everything").values():
        assert faults(item, (VERSIONS[0], VERSIONS[-1])) == []


def test_the_job_of_the_monitor_is_the_one_of_the_alerts_and_the_docs() -> None:
    objects = rendered("everything")
    label = objects["PodMonitor", "hawse-relay"]["spec"]["jobLabel"]
    labels: dict[str, Any] = objects["Deployment", "hawse-relay"]["spec"]["template"]["metadata"]["labels"]
    job = labels[label]
    alerts = (ROOT / "deploy" / "prometheus" / "hawse.rules.yaml").read_text()
    [jobs] = re.findall(r'job=~"([^"]*)"', alerts)
    assert job in jobs.split("|")
    assert f"job_name: {job} " in (ROOT / "docs" / "operations.md").read_text()
