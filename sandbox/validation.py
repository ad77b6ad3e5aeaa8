"""Checks objects against the table of fields: drops and reports unknown fields, and refuses wrong types."""

from __future__ import annotations

from collections.abc import Callable

from sandbox.objects import Json, Object
from sandbox.schema import Field, Message, load
from sandbox.status import bad_request

_TYPES: dict[str, Callable[[Json], bool]] = {
    "string": lambda value: isinstance(value, str),
    "int32": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "int64": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "bool": lambda value: isinstance(value, bool),
    "bytes": lambda value: isinstance(value, str),
    "Time": lambda value: isinstance(value, str),
    "MicroTime": lambda value: isinstance(value, str),
    "Quantity": lambda value: isinstance(value, (str, int, float)) and not isinstance(value, bool),
    "IntOrString": lambda value: isinstance(value, (str, int)) and not isinstance(value, bool),
    "Any": lambda value: True,
}
_GO_KINDS = {str: "string", bool: "bool", int: "number", float: "number", list: "array", dict: "object"}


def pruned(kind: str, value: Object, unknown: list[str]) -> Object:
    """Return an object with its known fields only, and add the paths of the others to `unknown`.

    Nulls are dropped too, as decoding into Go does. Raises StatusError for a value of a wrong type.
    """
    head: Object = {key: value[key] for key in ("kind", "apiVersion") if key in value}
    rest = {key: item for key, item in value.items() if key not in head}
    return {**head, **_object(load()[kind], rest, "", kind, unknown)}


def _object(message: Message, value: Object, path: str, root: str, unknown: list[str]) -> Object:
    result: Object = {}
    for key, item in value.items():
        where = f"{path}.{key}" if path else key
        field = message.by_name.get(key)
        if field is None:
            unknown.append(where)
        elif item is not None:
            result[key] = _contained(field, field.containers, item, where, root, unknown)
    return result


def _contained(
    field: Field, containers: tuple[str, ...], value: Json, path: str, root: str, unknown: list[str]
) -> Json:
    if not containers:
        return _single(field, value, path, root, unknown)
    outer, *rest = containers
    if outer == "[]":
        if not isinstance(value, list):
            raise _mismatch(root, path, value, f"[]{field.type}")
        return [
            _contained(field, tuple(rest), item, f"{path}[{index}]", root, unknown)
            for index, item in enumerate(value)
        ]
    if not isinstance(value, dict):
        raise _mismatch(root, path, value, f"map[string]{field.type}")
    return {
        key: _contained(field, tuple(rest), item, f"{path}.{key}", root, unknown)
        for key, item in value.items()
        if item is not None
    }


def _single(field: Field, value: Json, path: str, root: str, unknown: list[str]) -> Json:
    fits = _TYPES.get(field.type)
    if fits is None:
        if not isinstance(value, dict):
            raise _mismatch(root, path, value, field.type)
        return _object(load()[field.type], value, path, root, unknown)
    if not fits(value):
        raise _mismatch(root, path, value, field.type)
    return str(value) if field.type == "Quantity" else value


def _mismatch(root: str, path: str, value: Json, type_name: str) -> Exception:
    given = _GO_KINDS.get(type(value), "null")
    return bad_request(
        f'{root} in version "v1" cannot be handled as a {root}: json: cannot unmarshal {given} '
        f"into Go struct field {root}.{path} of type {type_name}"
    )
