"""OpenAPI v3: the index of documents and one document per group, made from the table of fields.

It serves `kubectl explain`, the client's choice of patches, and its check whether the server validates
fields. The index gives each document under its hash, and a stale hash is redirected, as on the real server.
"""

from __future__ import annotations

import functools
import hashlib
import time
from email.utils import formatdate

from sandbox.discovery import SERVER_VERSION
from sandbox.kinds import GROUPS, Kind, of_group
from sandbox.objects import Json, Object, encode, text
from sandbox.patch import PATCH_TYPES
from sandbox.schema import Field, Message, load
from sandbox.server import Request, Response

_VERSION = text(SERVER_VERSION, "gitVersion")
_V2_PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_CACHED_S = 365 * 24 * 3600
_PACKAGES = {
    "core": "io.k8s.api.core",
    "apps": "io.k8s.api.apps",
    "batch": "io.k8s.api.batch",
    "rbac": "io.k8s.api.rbac",
    "policy": "io.k8s.api.policy",
    "authentication": "io.k8s.api.authentication",
    "authorization": "io.k8s.api.authorization",
    "autoscaling": "io.k8s.api.autoscaling",
    "admissionregistration": "io.k8s.api.admissionregistration",
    "apiregistration": "io.k8s.kube-aggregator.pkg.apis.apiregistration",
    "aggregated": "com.example.aggregated",
    "stable": "com.example.stable",
    "meta": "io.k8s.apimachinery.pkg.apis.meta",
}
_GROUP_NAMES = {
    "core": "",
    "rbac": "rbac.authorization.k8s.io",
    "authentication": "authentication.k8s.io",
    "authorization": "authorization.k8s.io",
    "admissionregistration": "admissionregistration.k8s.io",
    "apiregistration": "apiregistration.k8s.io",
    "aggregated": "aggregated.example.com",
    "stable": "stable.example.com",
}
_QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
_INT_OR_STRING = "io.k8s.apimachinery.pkg.util.intstr.IntOrString"
SCALARS: dict[str, Object] = {
    "string": {"type": "string"},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "bool": {"type": "boolean"},
    "bytes": {"type": "string", "format": "byte"},
    "Time": {"type": "string", "format": "date-time"},
    "MicroTime": {"type": "string", "format": "date-time"},
    "Quantity": {"$ref": f"#/components/schemas/{_QUANTITY}"},
    "IntOrString": {"$ref": f"#/components/schemas/{_INT_OR_STRING}"},
    "Any": {"type": "object"},
}


def answer(request: Request) -> Response | None:
    """Answer a GET of /openapi/v3 or below; None if it does not exist."""
    path = request.path.removeprefix("/openapi/v3").strip("/")
    if not path:
        return _index()
    group = _group_at(path)
    if group is None:
        return None
    body, digest = document(group)
    requested_hash = request.option("hash")
    if requested_hash and requested_hash != digest:
        return Response(301, b"", "", [("Location", f"/openapi/v3/{path}?hash={digest}")])
    headers = [("ETag", f'"{digest}"'), ("Vary", "Accept")]
    if requested_hash:
        headers += [
            ("Cache-Control", "public, immutable"),
            ("Expires", formatdate(time.time() + _CACHED_S, usegmt=True)),
        ]
    if request.header(b"if-none-match") == f'"{digest}"':
        return Response(304, b"", "", headers)
    return Response(200, body, "application/json", headers)


def answer_v2(request: Request) -> Response:
    """Answer /openapi/v2 with an empty document; kubectl still requests it for a List.

    Clients treat a kind that is not in it as one that they cannot validate.
    """
    accepted = request.header(b"accept")
    if "application/json" in accepted or "protobuf" not in accepted:
        info: Object = {"title": "Kubernetes", "version": _VERSION}
        return Response(200, encode({"swagger": "2.0", "info": info, "paths": {}, "definitions": {}}))
    # The message Document of gnostic's OpenAPIv2.proto: swagger = 1, info = 2 (title = 1, version = 2).
    info_bytes = _protobuf_string(1, "Kubernetes") + _protobuf_string(2, _VERSION)
    body = _protobuf_string(1, "2.0") + bytes([2 << 3 | 2, len(info_bytes)]) + info_bytes
    return Response(200, body, _V2_PROTOBUF)


def _protobuf_string(number: int, value: str) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value.encode()


def _index() -> Response:
    paths: Object = {}
    for group in GROUPS:
        path = _path_of(group)
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}?hash={document(group)[1]}"}
    return Response(200, encode({"paths": paths}))


def _path_of(group: str) -> str:
    return f"apis/{group}/v1" if group else "api/v1"


def _group_at(path: str) -> str | None:
    return next((group for group in GROUPS if _path_of(group) == path), None)


@functools.cache
def document(group: str) -> tuple[bytes, str]:
    """Return the document of a group, and its hash."""
    schemas: Object = {
        _QUANTITY: {
            "description": "An amount, as 100m or 1Gi.",
            "oneOf": [{"type": "string"}, {"type": "number"}],
        },
        _INT_OR_STRING: {
            "description": "A number or a name.",
            "format": "int-or-string",
            "oneOf": [{"type": "integer"}, {"type": "string"}],
        },
    }
    kinds = of_group(group)
    for kind in kinds:
        _add_schema(schemas, load()[kind.kind])
        if kind.stored:
            _add_list(schemas, kind)
        for sub in kind.subresources:
            if sub.kind in load():
                _add_schema(schemas, load()[sub.kind])
    paths: Object = {}
    for kind in kinds:
        paths.update(_paths(kind))
    body = encode(
        {
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": _VERSION},
            "paths": paths,
            "components": {"schemas": schemas},
        }
    )
    return body, hashlib.sha256(body).hexdigest().upper()


def schema_name(message: Message) -> str:
    """Return the name under which the real server publishes a type."""
    return f"{_PACKAGES[message.group]}.{message.version}.{message.name}"


def _gvk(message: Message) -> Object:
    group = _GROUP_NAMES.get(message.group, message.group)
    return {"group": group, "version": message.version, "kind": message.name}


def _add_schema(schemas: Object, message: Message) -> None:
    """Add a type and all types that it refers to."""
    name = schema_name(message)
    if name in schemas:
        return
    schema: Object = {"type": "object", "description": message.description}
    schemas[name] = schema
    properties: Object = {}
    if message.by_name.get("metadata") and message.name != "PodTemplateSpec":
        properties["apiVersion"] = {"type": "string", "description": "The version of the object's schema."}
        properties["kind"] = {"type": "string", "description": "What the object is."}
        schema["x-kubernetes-group-version-kind"] = [_gvk(message)]
    for field in message.flat():
        properties[field.name] = _property(field)
        if field.type in load():
            _add_schema(schemas, load()[field.type])
    required: list[Json] = [field.name for field in message.flat() if field.required]
    if required:
        schema["required"] = required
    schema["properties"] = properties


def _property(field: Field) -> Object:
    scalar = SCALARS.get(field.type)
    schema: Object = (
        {"$ref": f"#/components/schemas/{schema_name(load()[field.type])}"} if scalar is None else {**scalar}
    )
    if "$ref" in schema:
        # A reference must be alone in its object; the description goes beside it.
        schema = {"allOf": [schema], "default": {}}
    for container in reversed(field.containers):
        if container == "[]":
            schema = {"type": "array", "items": schema}
        else:
            schema = {"type": "object", "additionalProperties": schema}
    if field.description:
        schema["description"] = field.description
    if field.merges:
        schema["x-kubernetes-patch-strategy"] = "merge"
    if field.merge_key:
        schema["x-kubernetes-patch-merge-key"] = field.merge_key
    return schema


def _add_list(schemas: Object, kind: Kind) -> None:
    message = load()[kind.kind]
    schemas[f"{schema_name(message)}List"] = {
        "type": "object",
        "description": f"A list of {kind.resource}.",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "items": {"type": "array", "items": {"$ref": f"#/components/schemas/{schema_name(message)}"}},
        },
        "x-kubernetes-group-version-kind": [{**_gvk(message), "kind": f"{kind.kind}List"}],
    }


def _paths(kind: Kind) -> Object:
    """Return the operations on a kind that clients look up."""
    where = "/namespaces/{namespace}" if kind.namespaced else ""
    collection = f"{kind.prefix}{where}/{kind.resource}"
    content: Object = {"schema": {"$ref": f"#/components/schemas/{schema_name(load()[kind.kind])}"}}

    def operation(action: str, *parameters: str) -> Object:
        described: list[Json] = [
            {"name": name, "in": "query", "schema": {"type": "string"}} for name in parameters
        ]
        body: Object = {
            "operationId": f"{action}{kind.kind}",
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": _gvk(load()[kind.kind]),
            "responses": {"200": {"description": "OK", "content": {"application/json": content}}},
        }
        if described:
            body["parameters"] = described
        return body

    writing = ("dryRun", "fieldManager", "fieldValidation")
    create: Object = {
        **operation("post", *writing),
        "requestBody": {"content": {"*/*": content}},
    }
    if not kind.stored:
        return {collection: {"post": create}}
    patch: Object = {
        **operation("patch", *writing, "force"),
        "requestBody": {
            "content": {media_type: {"schema": {"type": "object"}} for media_type in PATCH_TYPES}
        },
    }
    return {
        collection: {"get": operation("list", "limit", "continue", "labelSelector"), "post": create},
        f"{collection}/{{name}}": {
            "get": operation("get"),
            "put": {**operation("put", *writing), "requestBody": {"content": {"*/*": content}}},
            "patch": patch,
            "delete": operation("delete", "dryRun", "propagationPolicy"),
        },
    }
