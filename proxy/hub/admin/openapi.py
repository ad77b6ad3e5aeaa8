"""The description of the admin API in OpenAPI 3.1, made from the table of actions and their shapes.

https://spec.openapis.org/oas/v3.1.1.html. What an answer has is described where a verb declares its shape,
and is an object without a description elsewhere.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_type_hints

import msgspec

from proxy.hub.admin.administration import ACTIONS, Action, Administration
from proxy.hub.admin.verbs.answers import Done, Download, Followed
from proxy.hub.admin.verbs.verb import ENDPOINTS, Endpoint
from proxy.hub.store.engines.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    StoreUnavailableError,
)

_PARAMETER = re.compile(r"\{(\w+)\}")
_REF = "#/components/schemas/{name}"
_JSON = "application/json"

_Object = dict[str, Any]


class ErrorDetail(msgspec.Struct):
    """Why a request was refused."""

    code: str
    """A word that stays the same."""
    message: str
    """A sentence for the operator."""


class Error(msgspec.Struct):
    """The body of every answer with a status of 400 and above."""

    error: ErrorDetail


# The errors, by status: their codes, and when they occur.
_ERRORS: Mapping[int, tuple[str, str]] = {
    400: ("invalid", "A header is invalid, such as that of this machine's user."),
    401: ("unauthenticated, expired", "There is no valid admin token."),
    403: ("forbidden", "The token's role may not do this; the message names the roles that may."),
    404: (NotFoundError.code, "There is nothing of that name."),
    409: (ConflictError.code, "The change conflicts with the present state."),
    413: ("too_large", "The body is too large."),
    422: (InvalidError.code, "The body, the query or a name is invalid; the message names the field."),
    429: ("busy", "Searches of the trail are under way: ask again in a moment."),
    503: (
        f"{StoreUnavailableError.code}, audit_unavailable, too_many_streams",
        "The database, the trail or a stream cannot be used now; nothing was changed.",
    ),
    507: ("not_recorded", "The revocation is in force, and could not be recorded."),
}
# The verbs that answer 201, but 202 for work that goes on after the answer.
CREATING = frozenset({"create", "rotate"})
ACCEPTING = frozenset({"policysimulations"})
_TEXTS = {200: "The answer.", 201: "It was made.", 202: "It was started: ask for it later."}
_EVENT: _Object = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "id": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
# Of an endpoint that is no action.
_OF_EVERY = (400, 401, 403)


@cache
def description(version: str) -> bytes:
    """Return the description as JSON."""
    return msgspec.json.format(msgspec.json.encode(_document(version)), indent=2) + b"\n"


def _document(version: str) -> _Object:
    shapes = {shape for each in ACTIONS for shape in (each.body, each.query, each.answer) if shape}
    _, components = msgspec.json.schema_components(
        [Error, *sorted(shapes, key=lambda shape: shape.__name__)], ref_template=_REF
    )
    paths: _Object = {}
    for endpoint in (*ENDPOINTS, *ACTIONS):
        path = paths.setdefault(endpoint.path, {})
        path[endpoint.method.lower()] = _operation(endpoint, components)
    queries = {each.query.__name__ for each in ACTIONS if each.query is not None}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Hawse admin API",
            "version": version,
            "description": "The API of `hawse admin` and of the console. A role includes others: "
            "`x-hawse-roles` of an operation has all that may use it.",
        },
        "security": [{"adminToken": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "adminToken": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An admin token: hawse admin token add NAME --role ROLE",
                }
            },
            "responses": {f"Error{status}": _error(status) for status in _ERRORS},
            # The shape of a query is not one of JSON: its fields are parameters.
            "schemas": {name: shape for name, shape in components.items() if name not in queries},
        },
    }


def _operation(endpoint: Endpoint, components: Mapping[str, Any]) -> _Object:
    text, answer, query, body = "", None, None, None
    kind: type = Done
    if isinstance(endpoint, Action):
        function = getattr(get_type_hints(Administration)[endpoint.group], endpoint.function)
        text, kind = inspect.getdoc(function) or "", get_type_hints(function)["return"]
        answer, query, body = endpoint.answer, endpoint.query, endpoint.body
    summary, _, rest = text.partition("\n")
    operation: _Object = {
        "operationId": _operation_id(endpoint),
        "tags": [endpoint.resource.partition("/")[0]],
        "x-hawse-roles": [str(role) for role in endpoint.holders],
    }
    if summary:
        operation["summary"] = summary.rstrip(".")
    if rest.strip():
        operation["description"] = rest.strip()
    parameters = [*_path_parameters(endpoint), *_query_parameters(query, components)]
    if isinstance(endpoint, Action) and endpoint.etag:
        parameters.append(_header("If-None-Match", "The ETag of an answer that the client has."))
    if kind is Followed:
        parameters.append(_header("Last-Event-ID", "The id after which the stream goes on."))
    if parameters:
        operation["parameters"] = parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": _ref(body)}}}
    operation["responses"] = dict(_responses(endpoint, kind, answer))
    return operation


def _operation_id(endpoint: Endpoint) -> str:
    # A verb and a resource are one operation, but for a version and its list.
    words = re.findall(r"\w+", f"{endpoint.verb} {endpoint.resource}")
    return "-".join(words)


def _path_parameters(endpoint: Endpoint) -> Iterator[_Object]:
    for name in _PARAMETER.findall(endpoint.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(query: type | None, components: Mapping[str, Any]) -> Iterator[_Object]:
    if query is None:
        return
    shape = components[query.__name__]
    for name, schema in shape["properties"].items():
        required = name in shape.get("required", ())
        # Left out is the default; there is no text for null.
        options = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
        fitting = options[0] if len(options) == 1 else schema
        described = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
        parameter: _Object = {
            "name": name,
            "in": "query",
            "required": required,
            "schema": {**described, **fitting},
        }
        if (default := schema.get("default")) is not None:
            parameter["schema"]["default"] = default
        yield parameter


def _header(name: str, text: str) -> _Object:
    return {
        "name": name,
        "in": "header",
        "required": False,
        "description": text,
        "schema": {"type": "string"},
    }


def _responses(endpoint: Endpoint, kind: type, answer: type | None) -> Iterator[tuple[str, _Object]]:
    if endpoint in ENDPOINTS and endpoint.path.endswith("metrics"):
        yield "200", {"description": "Prometheus' text format.", "content": {"text/plain": {}}}
    elif kind is Followed:
        text = "Server-sent events, until the role, the token or the hub ends."
        yield "200", {"description": text, "content": {"text/event-stream": {"schema": _EVENT}}}
    elif kind is Download:
        yield "200", {"description": "The file.", "content": {"*/*": {}}}
    else:
        schema = {"type": "object"} if answer is None else _ref(answer)
        status = 202 if endpoint.resource in ACCEPTING else 201
        status = status if endpoint.verb in CREATING else 200
        yield str(status), {"description": _TEXTS[status], "content": {_JSON: {"schema": schema}}}
    if isinstance(endpoint, Action) and endpoint.etag:
        yield "304", {"description": "The client has this answer."}
    for status in _ERRORS if isinstance(endpoint, Action) else _OF_EVERY:
        if status != 507 or (isinstance(endpoint, Action) and endpoint.revokes is not False):
            yield str(status), {"$ref": f"#/components/responses/Error{status}"}


def _error(status: int) -> _Object:
    codes, text = _ERRORS[status]
    return {"description": f"`{codes}`: {text}", "content": {_JSON: {"schema": _ref(Error)}}}


def _ref(shape: type) -> _Object:
    return {"$ref": _REF.format(name=shape.__name__)}
