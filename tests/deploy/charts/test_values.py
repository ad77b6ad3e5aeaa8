"""The chart's values, its schema and its README, without Helm."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from proxy.kubernetes.chart_values import REPLICAS_MAX, relay_values
from proxy.kubernetes.manifests import MEMORY_LIMIT_MIB, MEMORY_MIB, relay_manifests
from proxy.process.settings import MEMORY_MIB_MIN
from proxy.process.version import VERSION
from proxy.relay.config import MEMORY_MIB as RELAYS_MEMORY_MIB
from tests.deploy.charts.faults import SCHEMA, VALID, Fault, faults, rules, without_nulls
from tests.deploy.charts.sets import BASE, CHART, DEFAULTS, SETS, ValueSet, merged

VALIDATOR = Draft7Validator(SCHEMA)
README = (CHART / "README.md").read_text()
ROW = re.compile(r"^\| `(?P<key>[\w.]+)` \| (?P<default>.+?) \| .*\|$", re.MULTILINE)


def test_the_versions_are_those_of_hawse() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == VERSION
    # Helm takes SemVer, which writes 1.2.0rc1 and 1.2.0.dev3 in another way.
    assert chart["version"] == re.sub(r"\.?(rc|dev)([0-9]+)$", r"-\1.\2", VERSION)


def test_the_schema_is_one() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert VALIDATOR.is_valid(VALID), [error.message for error in VALIDATOR.iter_errors(VALID)]


@pytest.mark.parametrize("chosen", SETS.values(), ids=SETS)
def test_each_set_of_values_is_valid(chosen: ValueSet) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(merged(DEFAULTS, chosen.values))] == []


def test_each_rule_of_the_schema_refuses_two_faults_and_names_the_place() -> None:
    made = faults()
    number: dict[tuple[object, str], int] = {}
    for fault in made:
        refusals = list(flat(VALIDATOR.iter_errors(without_nulls(fault.values))))
        assert named(fault, refusals), (fault.name, refusals)
        key = (fault.path, fault.keyword)
        number[key] = number.get(key, 0) + 1
    # A rule of one required key has one fault of its kind.
    single = {keyword for (_, keyword), count in number.items() if count < 2}
    assert single <= {"required"}
    assert len(number) >= len({(path, keyword) for path, keyword, _ in rules()})


def flat(errors: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for error in errors:
        yield tuple(error.absolute_path), error.validator


def named(fault: Fault, refusals: list[tuple[tuple[str | int, ...], str]]) -> bool:
    if fault.path == ("impersonate", "iKnow") and (("impersonate",), "required") in refusals:
        return True
    return (fault.path, fault.keyword) in refusals


def test_values_that_go_with_others_are_still_valid() -> None:
    for more in (
        {"impersonate": {"form": "wildcard", "iKnow": True}},
        {"guardrails": {"text": "", "configMap": "mine"}},
        {"replicas": 8},
        {"hub": {"url": "https://[2001:db8::1]:8443"}},
    ):
        assert VALIDATOR.is_valid(merged(VALID, {"guardrails": {"text": ""}} | more))


def test_the_readme_has_each_value_with_its_default() -> None:
    rows = {row["key"]: row["default"] for row in ROW.finditer(README)}
    assert list(rows) == [key for key, _ in leaves(DEFAULTS)]
    for key, default in leaves(DEFAULTS):
        written = rows[key]
        if written == "required":
            assert default == ""
        elif written != "see values.yaml":
            assert yaml.safe_load(written.strip("`")) == default, key


def test_the_schema_has_the_values_of_the_file_and_no_other() -> None:
    assert {*SCHEMA["properties"]} == {*DEFAULTS, "global"}
    for key, value in DEFAULTS.items():
        properties = SCHEMA["properties"][key].get("properties")
        if isinstance(value, dict) and properties is not None:
            assert properties.keys() == value.keys(), key


def leaves(values: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def test_the_numbers_are_those_of_the_manifests_and_the_relay() -> None:
    assert DEFAULTS["memoryMib"] == MEMORY_MIB == RELAYS_MEMORY_MIB
    assert DEFAULTS["resources"]["limits"]["memory"] == f"{MEMORY_LIMIT_MIB}Mi"
    assert MEMORY_LIMIT_MIB - MEMORY_MIB >= 190
    properties = SCHEMA["properties"]
    assert properties["memoryMib"]["minimum"] == MEMORY_MIB_MIN
    assert properties["replicas"]["maximum"] == REPLICAS_MAX


def test_a_variable_of_the_chart_cannot_be_set_twice() -> None:
    [deployment] = [each for each in relay_manifests(BASE) if each["kind"] == "Deployment"]
    container = yaml.safe_load(yaml.safe_dump(deployment))["spec"]["template"]["spec"]["containers"][0]
    refused = SCHEMA["properties"]["extraEnv"]["items"]["properties"]["name"]["not"]["enum"]
    assert sorted(refused) == sorted(each["name"] for each in container["env"])


def test_no_value_takes_a_key() -> None:
    values = relay_values(BASE, ["robot"], ["acme/demo"], constrained=False)
    assert "PRIVATE KEY" not in str(values)
    assert "CERTIFICATE" not in str(values)
    for key in ("privateKey", "relayKey", "hubKeys"):
        assert not VALIDATOR.is_valid(merged(DEFAULTS, {**values, key: "x"}))
