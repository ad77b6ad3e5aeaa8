"""The four kinds of patches: JSON Patch, JSON Merge Patch, strategic merge, and server-side apply.

Apply is a plain merge here: the fields of the configuration win, and fields that it no longer contains stay.
The real server tracks which manager owns each field, and reports conflicts.
"""

from __future__ import annotations

import copy

from sandbox.objects import Json, Object
from sandbox.schema import Field, Message, load
from sandbox.status import StatusError, bad_request

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
PATCH_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)

# The API server's limit for one JSON patch.
OPERATIONS_MAX = 10_000

_DIRECTIVES = ("$patch", "$retainKeys", "$setElementOrder", "$deleteFromPrimitiveList")


def merge_patch(value: Json, patch: Json) -> Json:
    """Apply a JSON Merge Patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result: Object = dict(value) if isinstance(value, dict) else {}
    for key, item in patch.items():
        if item is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), item)
    return result


def strategic_merge(kind: str, value: Object, patch: Object) -> Object:
    """Apply a strategic merge patch: lists with a merge key are merged by it."""
    return _strategic(load()[kind], value, patch)


def apply_configuration(kind: str, value: Object, configuration: Object) -> Object:
    """Apply a configuration to an object: a strategic merge without directives."""
    return _strategic(load()[kind], value, configuration, directives=False)


def _strategic(message: Message | None, value: Object, patch: Object, *, directives: bool = True) -> Object:
    match patch.get("$patch") if directives else None:
        case "replace":
            return {key: item for key, item in patch.items() if key != "$patch"}
        case "delete":
            return {}
    result = dict(value)
    if directives:
        retained = patch.get("$retainKeys")
        if isinstance(retained, list):
            result = {key: item for key, item in result.items() if key in retained}
    for key, item in patch.items():
        if directives and key.startswith("$"):
            _remove_primitives(result, key, item)
            continue
        field = message.by_name.get(key) if message else None
        if item is None:
            result.pop(key, None)
        elif isinstance(item, dict):
            present = result.get(key)
            inner = load().get(field.type) if field and not field.containers else None
            base: Object = present if isinstance(present, dict) else {}
            merged = _strategic(inner, base, item, directives=directives)
            if item.get("$patch") == "delete" and directives:
                result.pop(key, None)
            else:
                result[key] = merged
        elif isinstance(item, list) and field is not None and field.merges:
            result[key] = _merged_list(field, result.get(key), item, directives=directives)
            _order(result[key], patch.get(f"$setElementOrder/{key}"), field)
        else:
            result[key] = item
    if directives:
        _order_untouched(message, result, patch)
    return result


def _remove_primitives(result: Object, directive: str, values: Json) -> None:
    name, _, key = directive.partition("/")
    present = result.get(key)
    if name == "$deleteFromPrimitiveList" and isinstance(present, list) and isinstance(values, list):
        result[key] = [item for item in present if item not in values]


def _order_untouched(message: Message | None, result: Object, patch: Object) -> None:
    """Reorder lists for which the patch gives an order but no items."""
    for directive, order in patch.items():
        name, _, key = directive.partition("/")
        if name == "$setElementOrder" and key not in patch and message and key in message.by_name:
            _order(result.get(key), order, message.by_name[key])


def _merged_list(field: Field, present: Json, patch: list[Json], *, directives: bool) -> list[Json]:
    items = list(present) if isinstance(present, list) else []
    if field.merge_key is None:
        return [*items, *(item for item in patch if item not in items)]
    key = field.merge_key
    if directives and {"$patch": "replace"} in patch:
        return [item for item in patch if item != {"$patch": "replace"}]
    for item in patch:
        if not isinstance(item, dict):
            raise bad_request(f"a list merged by {key} contains a value that is not an object")
        at = _index(items, key, item.get(key))
        if directives and item.get("$patch") == "delete":
            if at is not None:
                del items[at]
        elif at is None:
            items.append({name: part for name, part in item.items() if name not in _DIRECTIVES})
        else:
            base = items[at]
            assert isinstance(base, dict)
            items[at] = _strategic(load().get(field.type), base, item, directives=directives)
    return items


def _index(items: list[Json], key: str, value: Json) -> int | None:
    for index, item in enumerate(items):
        if isinstance(item, dict) and item.get(key) == value:
            return index
    return None


def _order(items: Json, order: Json, field: Field) -> None:
    """Sort a list in place in the client's order; items unknown to the client stay at the end."""
    if not isinstance(items, list) or not isinstance(order, list):
        return
    key = field.merge_key
    order_keys = [item.get(key) if key and isinstance(item, dict) else item for item in order]

    def position(item: Json) -> int:
        name = item.get(key) if key and isinstance(item, dict) else item
        return order_keys.index(name) if name in order_keys else len(order_keys)

    items.sort(key=position)


def json_patch(value: Object, operations: Json) -> Object:
    """Apply a JSON Patch (RFC 6902); raises StatusError."""
    if not isinstance(operations, list):
        raise bad_request("a JSON patch is a list of operations")
    if len(operations) > OPERATIONS_MAX:
        raise StatusError(
            413,
            "RequestEntityTooLarge",
            f"Request entity too large: The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, "
            f"got {len(operations)}",
        )
    document: Json = copy.deepcopy(value)
    for operation in operations:
        if not isinstance(operation, dict):
            raise bad_request("a JSON patch operation is an object")
        document = _operate(document, operation)
    if not isinstance(document, dict):
        raise bad_request("the patch leaves a value that is not an object")
    return document


def _operate(document: Json, operation: Object) -> Json:
    path = _pointer(operation.get("path"))
    match operation.get("op"):
        case "add":
            return _put(document, path, operation.get("value"), insert=True)
        case "replace":
            _get(document, path)
            return _put(document, path, operation.get("value"), insert=False)
        case "remove":
            _remove(document, path)
            return document
        case "move":
            source = _pointer(operation.get("from"))
            moved = _get(document, source)
            _remove(document, source)
            return _put(document, path, moved, insert=True)
        case "copy":
            copied = copy.deepcopy(_get(document, _pointer(operation.get("from"))))
            return _put(document, path, copied, insert=True)
        case "test":
            if _get(document, path) != operation.get("value"):
                shown = "/".join(["", *path])
                raise _failed(f"testing value {shown} failed: test failed")
            return document
    raise bad_request(f"unexpected kind: {operation.get('op')}")


def _failed(why: str) -> StatusError:
    return StatusError(
        422,
        "Invalid",
        f"the server rejected our request due to an error in our request: {why}",
        {},
    )


def _pointer(value: Json) -> list[str]:
    if not isinstance(value, str) or (value and not value.startswith("/")):
        raise bad_request("a JSON patch path begins with a slash")
    return [part.replace("~1", "/").replace("~0", "~") for part in value.split("/")[1:]]


def _get(document: Json, path: list[str]) -> Json:
    for part in path:
        match document:
            case dict() if part in document:
                document = document[part]
            case list() if part.isdecimal() and int(part) < len(document):
                document = document[int(part)]
            case _:
                raise _failed(f"the path {'/'.join(['', *path])} does not exist")
    return document


def _put(document: Json, path: list[str], value: Json, *, insert: bool) -> Json:
    if not path:
        return value
    parent, last = _get(document, path[:-1]), path[-1]
    match parent:
        case dict():
            parent[last] = value
        case list() if last == "-" and insert:
            parent.append(value)
        case list() if last.isdecimal() and int(last) <= len(parent):
            if insert:
                parent.insert(int(last), value)
            else:
                parent[int(last)] = value
        case _:
            raise _failed(f"the path {'/'.join(['', *path])} does not exist")
    return document


def _remove(document: Json, path: list[str]) -> None:
    _get(document, path)
    if not path:
        raise bad_request("the whole object cannot be removed by a patch")
    parent, last = _get(document, path[:-1]), path[-1]
    if isinstance(parent, dict):
        del parent[last]
    elif isinstance(parent, list):
        del parent[int(last)]
