"""Decodes request bodies and encodes answers, by media type."""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs
import yaml

from sandbox import protobuf
from sandbox.kinds import Kind
from sandbox.objects import Json, Object, plain, text
from sandbox.server import Request
from sandbox.status import StatusError, bad_request, unsupported_media_type
from sandbox.storage import Item
from sandbox.validation import pruned

JSON = "application/json"
YAML = "application/yaml"
BODY_TYPES = (JSON, YAML, protobuf.CONTENT_TYPE)


def decode_body(request: Request, body: bytes) -> Object:
    """Return the object in a body of any accepted type; raises StatusError."""
    content_type = request.header(b"content-type").partition(";")[0].strip().lower() or JSON
    if content_type not in BODY_TYPES:
        raise unsupported_media_type(BODY_TYPES)
    if content_type == protobuf.CONTENT_TYPE:
        return protobuf.decode(body)
    value = parse(body, as_yaml=content_type == YAML)
    if not isinstance(value, dict):
        raise bad_request("the body of the request is not an object")
    return value


def parse(body: bytes, *, as_yaml: bool = False) -> Json:
    """Return JSON, or YAML as JSON; raises StatusError."""
    try:
        return plain(yaml.safe_load(body) if as_yaml else json.loads(body))
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as exc:
        raise bad_request(f"error decoding the body: {exc}") from exc


def decode_object(request: Request, body: bytes, kind: str, api_version: str, warnings: list[str]) -> Object:
    """Return the object in a body if it is of this kind, checked against the table of fields."""
    if not body:
        raise bad_request("the body of the request is empty")
    value = decode_body(request, body)
    given = (text(value, "apiVersion"), text(value, "kind"))
    if given != (api_version, kind) and given != ("", ""):
        raise bad_request(
            f"the API version in the data ({given[0]}) and its kind ({given[1]}) do not match "
            f"the expected ones ({api_version}, {kind})"
        )
    return known_fields(request, kind, value, warnings)


def known_fields(request: Request, kind: str, value: Object, warnings: list[str]) -> Object:
    """Drop unknown fields, and report them as the request's fieldValidation demands."""
    unknown: list[str] = []
    result = pruned(kind, value, unknown)
    complaints = [f'unknown field "{path}"' for path in unknown]
    match request.option("fieldValidation"):
        case "Strict" if complaints:
            raise bad_request(
                f'{kind} in version "v1" cannot be handled as a {kind}: strict decoding error: '
                + ", ".join(complaints)
            )
        case "Ignore":
            pass
        case _:
            warnings.extend(complaints)
    return result


@attrs.frozen
class AnswerForm:
    """The answer's format: the first one in the Accept header that can be served."""

    form: str  # "", "Table", "PartialObjectMetadata" or "PartialObjectMetadataList"
    version: str = "v1"

    @property
    def table(self) -> bool:
        """True if the objects are to be returned as table rows."""
        return self.form == "Table"


def answer_form(request: Request) -> AnswerForm:
    """Read the Accept header; raises StatusError 406."""
    accepted = [part.strip() for line in request.header_values(b"accept") for part in line.split(",")]
    for media_type in accepted or ["*/*"]:
        name, *parameters = (part.strip() for part in media_type.split(";"))
        options = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        if name not in (JSON, "*/*", "application/*", ""):
            continue
        form = options.get("as", "")
        if not form:
            return AnswerForm("")
        known = form == "Table" or form.startswith("PartialObjectMetadata")
        if options.get("g") == "meta.k8s.io" and options.get("v") in ("v1", "v1beta1") and known:
            return AnswerForm(form, options["v"])
    raise StatusError(406, "NotAcceptable", f"only the following media types are accepted: {JSON}")


def with_type(kind: Kind, item: Item) -> bytes:
    """Return a stored object as JSON with its kind and version."""
    return type_head(kind.kind, kind.api_version) + item.encoded[1:]


def type_head(kind: str, api_version: str) -> bytes:
    """Return the first members of an object, as the real server writes them."""
    return f'{{"kind":"{kind}","apiVersion":"{api_version}",'.encode()


def list_body(kind: Kind, metadata: bytes, items: Sequence[Item]) -> bytes:
    """Return a list; its items have no kind and version of their own."""
    head = type_head(f"{kind.kind}List", kind.api_version)
    return head + b'"metadata":' + metadata + b',"items":[' + b",".join(i.encoded for i in items) + b"]}"


def typed(kind: Kind, value: Object) -> Object:
    """Return an object with its kind and version first."""
    return {"kind": kind.kind, "apiVersion": kind.api_version, **value}


def warning_headers(warnings: Sequence[str]) -> list[tuple[str, str]]:
    """Return the Warning headers that kubectl prints."""
    return [
        ("Warning", '299 - "' + text.replace("\\", "\\\\").replace('"', '\\"') + '"') for text in warnings
    ]
