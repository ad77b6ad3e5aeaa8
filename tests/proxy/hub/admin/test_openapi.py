"""The description of the admin API: valid, whole, and kept by the running API."""

from __future__ import annotations

import json
import re
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import msgspec
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from audit.store import AuditStore
from proxy.hub.admin.administration import ACTIONS, Action
from proxy.hub.admin.openapi import description
from proxy.hub.admin.verbs.verb import ENDPOINTS
from proxy.hub.relays.operations import RelayInfo
from proxy.hub.store.roles import Role
from tests.audit.events import call as audited_call
from tests.fakes.admin import ROLE_TOKENS, TOKEN, WATCH, Bench, enrol, give_each_role_a_token, opened
from tests.fakes.asgi import call
from tests.fakes.requests import request_id

# Of each operation and mode, so that all take some seconds.
CASES = 3
NAMES = {"teams": "sre", "agents": "sre-1", "clusters": "prod", "requests": request_id(1)}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
RELAY = RelayInfo("prod", "pod-a", "0.1.0", "192.0.2.7", 1_800_000_000.0, 1_800_000_009.0, 12.5, 3)
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
        assert operation["x-hawse-roles"] == [str(role) for role in table[key].holders]
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
    fields = set() if action.query is None else {field.name for field in msgspec.structs.fields(action.query)}
    assert in_query == fields
    assert ("requestBody" in operation) == (action.body is not None)
    assert ("304" in operation["responses"]) == action.etag
    assert ("507" in operation["responses"]) == (action.revokes is not False)


def test_each_reference_leads_somewhere() -> None:
    for reference in set(re.findall(r'"(#/[^"]+)"', json.dumps(DOCUMENT))):
        found = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


ANSWERING = [each for each in ACTIONS if each.answer is not None and not each.path.startswith("/v1/audit")]


@pytest.mark.parametrize("action", ANSWERING, ids=lambda each: f"{each.verb} {each.resource}")
async def test_an_answer_has_exactly_the_fields_of_its_shape(bench: Bench, action: Action) -> None:
    await enrol(bench)
    await bench.ok("POST", "/v1/agents/sre-1/codes")
    await give_each_role_a_token(bench)
    bench.operations.live.append(RELAY)
    request = opened(bench)
    name = NAMES.get(action.path.removeprefix("/v1/").partition("/")[0], "")
    body = {"approve": {"shown": request.new.shown}, "deny": {"because": "not now"}}.get(action.verb)
    token = ROLE_TOKENS[action.holders[-1]]
    reply = await bench.ask(action.method, action.path.format(name=name), body, token=token)
    assert reply.status == 200
    answer = msgspec.json.decode(reply.body, type=action.answer or object)
    assert msgspec.to_builtins(answer) == reply.json


async def test_the_api_describes_itself(bench: Bench) -> None:
    reply = await bench.ask("GET", "/v1/openapi.json")
    assert (reply.status, reply.json) == (200, DOCUMENT)
    # As a scrape, it is no event.
    assert bench.recorder.events == []


def cases_of(operation: Any, mode: GenerationMode) -> list[Any]:
    """Return the requests that schemathesis makes from one operation: valid ones, or invalid ones."""
    cases: list[Any] = []
    shaped = len(operation.query) or len(operation.body)
    if mode is GenerationMode.NEGATIVE and not shaped:
        return cases
    # Deletes are of random names: the others need what `enrol` has made.
    name = (
        None
        if operation.method == "delete"
        else NAMES.get(operation.path.removeprefix("/v1/").partition("/")[0])
    )
    known = {"path_parameters": {"name": name}} if name and operation.path.count("{") == 1 else {}

    @hypothesis.settings(
        max_examples=CASES if shaped else 1,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode, **known))
    def collect(case: Any) -> None:
        cases.append(case)

    with suppress(Unsatisfiable):
        # An operation without parameters has no invalid request.
        collect()
    return cases


async def send(bench: Bench, case: Any) -> schemathesis.Response:
    """Send a request as an admin, or as the role that may do what an admin may not."""
    kwargs = case.as_transport_kwargs(base_url="http://hub")
    roles = case.operation.definition.raw["x-hawse-roles"]
    token = TOKEN if str(Role.ADMIN) in roles else ROLE_TOKENS[Role(roles[-1])]
    kwargs["headers"]["Authorization"] = f"Bearer {token}"
    prepared = requests.Request(**kwargs).prepare()
    url = urlsplit(str(prepared.url))
    headers = {name: str(value) for name, value in prepared.headers.items()}
    body = prepared.body or b""
    chunks = [body.encode() if isinstance(body, str) else body]
    target = f"{url.path}?{url.query}" if url.query else url.path
    reply = await call(bench.app, str(prepared.method), target, headers=headers, chunks=chunks)
    answered = {name: [value] for name, value in reply.headers.items()}
    return schemathesis.Response(reply.status, answered, reply.body, prepared, 0.0, verify=False)


SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
async def test_the_running_api_keeps_its_description(
    bench: Bench, tmp_path: Path, mode: GenerationMode
) -> None:
    """Requests that schemathesis makes from the description, against the actions over a real store."""
    with closing(AuditStore(tmp_path / "audit.db")) as trail:
        trail.append([audited_call()])
    await enrol(bench)
    await give_each_role_a_token(bench)
    bench.sessions.live.append(WATCH)
    opened(bench)
    asked = 0
    for result in SCHEMA.get_all_operations():
        for case in cases_of(result.ok(), mode):
            response = await send(bench, case)
            case.validate_response(response, checks=CHECKS)
            asked += 1
    assert asked > len(OPERATIONS) / 2
