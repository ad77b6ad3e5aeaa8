"""Kubernetes objects as nested JSON, with typed access by path."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Object: TypeAlias = "dict[str, Json]"


def lookup(value: Json, *path: str) -> Json:
    """Return the value at a path of field names, or None."""
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def text(value: Json, *path: str) -> str:
    """Return the string at a path, or the empty string."""
    found = lookup(value, *path)
    return found if isinstance(found, str) else ""


def integer(value: Json, *path: str, default: int = 0) -> int:
    """Return the number at a path, or a default."""
    found = lookup(value, *path)
    return found if isinstance(found, int) and not isinstance(found, bool) else default


def mapping(value: Json, *path: str) -> Object:
    """Return the object at a path to read from, or an empty one."""
    found = lookup(value, *path)
    return found if isinstance(found, dict) else {}


def strings(value: Json, *path: str) -> list[str]:
    """Return the strings of the list at a path."""
    found = lookup(value, *path)
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def string_map(value: Json, *path: str) -> dict[str, str]:
    """Return the string fields of the object at a path, as labels and annotations are."""
    return {key: item for key, item in mapping(value, *path).items() if isinstance(item, str)}


def items(value: Json, *path: str) -> list[Object]:
    """Return the objects of the list at a path."""
    found = lookup(value, *path)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def child(value: Object, *path: str) -> Object:
    """Return the object at a path for writing; missing objects are created."""
    for key in path:
        found = value.get(key)
        if not isinstance(found, dict):
            found = value[key] = {}
        value = found
    return value


def clone(value: Object) -> Object:
    """Return a deep copy; stored objects are never changed in place."""
    return copy.deepcopy(value)


def plain(value: object) -> Json:
    """Convert any JSON-like value to the type Json."""
    result: Json = json.loads(json.dumps(value))
    return result


def encode(value: Json) -> bytes:
    """Return JSON as the API server writes it: without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def now() -> str:
    """Return the current time as metav1.Time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def now_micro() -> str:
    """Return the current time as metav1.MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
