"""The chart as Helm 3 and Helm 4 render it, held to the manifests that `hawse admin cluster add` writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from deploy.charts import package
from proxy.process.version import VERSION
from tests.deploy.charts.helm.programs import Helm
from tests.deploy.charts.kubernetes import faults
from tests.deploy.charts.rendered import RENDERED, first_line, path
from tests.deploy.charts.sets import CHART, DEFAULTS, SETS, ValueSet, by_name, merged

EACH = pytest.mark.parametrize("chosen", SETS.values(), ids=SETS)


@EACH
def test_the_chart_renders_the_objects_of_the_manifests(helm: Helm, chosen: ValueSet) -> None:
    rendered, expected = helm.objects(chosen), chosen.expected
    assert rendered.keys() == expected.keys()
    for name, item in expected.items():
        assert rendered[name] == item


@EACH
def test_each_version_of_kubernetes_takes_each_object(chosen: ValueSet) -> None:
    # What each Helm renders is equal to these.
    for item in chosen.expected.values():
        assert faults(item) == []


@EACH
def test_lint_finds_nothing(helm: Helm, chosen: ValueSet) -> None:
    done = helm.run("lint", "--strict", values=chosen.values)
    assert done.returncode == 0, done.stdout
    assert "[ERROR]" not in done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("name", RENDERED)
def test_the_files_of_the_tests_without_helm_are_what_it_renders(helm: Helm, name: str) -> None:
    kept = path(name).read_text()
    assert kept.startswith(first_line())
    assert by_name([each for each in yaml.safe_load_all(kept) if each]) == helm.objects(SETS[name])


def test_the_package_renders_as_its_folder(helm: Helm, tmp_path: Path) -> None:
    file = tmp_path / "chart.tgz"
    file.write_bytes(package("hawse-relay"))
    assert helm.render(SETS["everything"], file) == helm.render(SETS["everything"])


def test_it_may_be_part_of_another_chart(helm: Helm, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(CHART, parent / "charts" / "hawse-relay")
    (parent / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 1.0.0\n")
    values = {"hawse-relay": SETS["example"].values, "global": {"team": "platform"}}
    done = helm.run("template", "prod", "--namespace", "hawse", values=values, chart=parent)
    assert done.returncode == 0, done.stderr
    assert by_name([each for each in yaml.safe_load_all(done.stdout) if each]) == SETS["example"].expected


def test_the_defaults_alone_say_what_is_missing(helm: Helm) -> None:
    done = helm.run("template", "prod", values={})
    assert done.returncode == 1
    paths = ("hub.url:", "cluster.id:", "existingSecret:")
    if helm.program.name == "helm-4":
        paths = ("'/hub/url'", "'/cluster/id'", "'/existingSecret'")
    assert all(each in done.stderr for each in paths)


def test_a_value_that_is_taken_away_leaves_the_image_pinned(helm: Helm) -> None:
    # Helm takes null for a value that does not exist.
    for image in ({"digest": None}, {"tag": None}):
        values = merged(SETS["example"].values, {"image": image})
        done = helm.run("template", "prod", values=values)
        assert f'image: "hawse-relay:{VERSION}"' in done.stdout


@pytest.mark.parametrize("key", ["guardrails", "networkPolicy", "podMonitor"])
def test_a_group_of_values_that_is_taken_away_is_named(helm: Helm, key: str) -> None:
    done = helm.run("template", "prod", values={**SETS["example"].values, key: None})
    assert done.returncode == 1
    assert f"{key} is required" in done.stderr or f"missing property '{key}'" in done.stderr


@pytest.mark.parametrize(
    ("memory_mib", "limit", "needed"),
    [(323, "512Mi", 513), (835, "1Gi", 1025), (64, "253Mi", 254), (320, "64Mi", 510)],
)
def test_a_limit_that_leaves_too_little_beside_the_calls_is_refused(
    helm: Helm, memory_mib: int, limit: str, needed: int
) -> None:
    values = merged(
        SETS["example"].values, {"memoryMib": memory_mib, "resources": {"limits": {"memory": limit}}}
    )
    done = helm.run("template", "prod", values=values)
    assert done.returncode == 1
    assert (
        f"resources.limits.memory is {limit}: memoryMib {memory_mib} needs {needed}Mi or more "
        "(memoryMib + 190); raise the limit, or lower memoryMib"
    ) in done.stderr
    enough = merged(values, {"resources": {"limits": {"memory": f"{needed}Mi"}}})
    assert helm.run("template", "prod", values=enough).returncode == 0


def test_every_value_is_another_than_its_default_in_some_set() -> None:
    # `global` is a parent chart's.
    assert {path for each in SETS.values() for path in changed(each.values, DEFAULTS)} >= set(
        leaves(DEFAULTS)
    )


def leaves(values: object, at: str = "") -> list[str]:
    if not isinstance(values, dict) or not values:
        return [at]
    return [leaf for key, value in values.items() for leaf in leaves(value, f"{at}.{key}")]


def changed(values: object, defaults: object, at: str = "") -> list[str]:
    if isinstance(values, dict) and isinstance(defaults, dict) and defaults:
        return [
            path for key, value in values.items() for path in changed(value, defaults.get(key), f"{at}.{key}")
        ]
    return [at] if values != defaults else []
