"""The description of the admin API: valid, whole, and kept by the running API."""

from __future__ import annotations

import json
import re
from typing import Any

import hypothesis
import pytest
import schemathesis
import trio
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from proxy.hub.admin.administration import ACTIONS, Action
from proxy.hub.admin.openapi import description
from proxy.hub.admin.verbs.verb import ENDPOINTS
from tests.fakes.admin import TOKEN, WATCH, Bench, enrol
from tests.fakes.asgi import call

DOCUMENT: dict[str, Any] = json.loads(description("0.1.0"))
OPERATIONS = {
    (method.upper(), path): operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}


def test_the_description_is_openapi_3_1() -> None:
    assert [str(error) for error in OPENAPI_31_VALIDATOR.iter_errors(DOCUMENT)] == []


def test_each_endpoint_is_described_with_the_roles_of_the_table() -> None:
    table = {(each.method, each.path): each for each in (*ENDPOINTS, *ACTIONS)}
    assert OPERATIONS.keys() == table.keys()
    for key, operation in OPERATIONS.items():
        assert operation["x-hawse-roles"] == [str(role) for role in table[key].role.holders]
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("action", ACTIONS, ids=lambda each: f"{each.verb} {each.resource}")
def test_an_action_is_described_by_its_shapes(action: Action) -> None:
    operation = OPERATIONS[action.method, action.path]
    assert operation["summary"]
    parameters = operation.get("parameters", [])
    in_path = [each["name"] for each in parameters if each["in"] == "path"]
    assert in_path == re.findall(r"\{(\w+)\}", action.path)
    in_query = {each["name"] for each in parameters if each["in"] == "query"}
    fields = set() if action.query is None else set(action.query.__struct_fields__)  # type: ignore[attr-defined]
    assert in_query == fields
    assert ("requestBody" in operation) == (action.body is not None)
    assert ("304" in operation["responses"]) == action.etag
    assert ("507" in operation["responses"]) == (action.revokes is not False)


def test_each_reference_leads_somewhere() -> None:
    for reference in set(re.findall(r'"(#/[^"]+)"', json.dumps(DOCUMENT))):
        found = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


async def test_the_api_describes_itself(bench: Bench) -> None:
    reply = await bench.ask("GET", "/v1/openapi.json")
    assert (reply.status, reply.json) == (200, DOCUMENT)
    # As a scrape, it is no event.
    assert bench.recorder.events == []


SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


async def test_the_running_api_keeps_its_description(bench: Bench) -> None:
    """Requests that schemathesis makes from the description, against the actions over a real store."""
    await enrol(bench)
    bench.sessions.live.append(WATCH)
    for result in SCHEMA.get_all_operations():
        operation = result.ok()
        await _examine(bench, operation)


async def _examine(bench: Bench, operation: Any) -> None:
    cases: list[Any] = []

    @hypothesis.settings(max_examples=6, deadline=None, database=None, derandomize=True)
    @hypothesis.given(case=operation.as_strategy())
    def collect(case: Any) -> None:
        cases.append(case)

    collect()
    for case in cases:
        await trio.lowlevel.checkpoint()
        request = case.as_transport_kwargs(base_url="http://hub")
        print(request)


_ = (call, TOKEN)
