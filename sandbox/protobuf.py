r"""Decodes request bodies in Kubernetes' protobuf, which kubectl's typed clients send; answers may be JSON.

A body is the four bytes `k8s\0` and an envelope (runtime.Unknown) with the type's name and the object's own
bytes. The table in schema.txt converts those to JSON. Go always writes fields that are not pointers, so their
zero value means that they are not set.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime

from sandbox.objects import Json, Object
from sandbox.schema import Field, Message, load
from sandbox.status import bad_request

CONTENT_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\0"
# Deeper than any served type.
DEPTH_MAX = 64


def decode(body: bytes) -> Object:
    """Return the object in a body; raises StatusError."""
    if not body.startswith(_MAGIC):
        raise bad_request("the body is not in Kubernetes' protobuf encoding")
    envelope = dict(_pairs(body[len(_MAGIC) :]))
    type_meta = dict(_pairs(_bytes(envelope.get(1, b""))))
    api_version = _text(type_meta.get(1, b""))
    kind = _text(type_meta.get(2, b""))
    message = load().get(kind)
    if message is None:
        raise bad_request(f'no kind "{kind}" is registered for version "{api_version}"')
    return {"kind": kind, "apiVersion": api_version, **_message(message, _bytes(envelope.get(2, b"")), 0)}


def _message(message: Message, data: bytes, depth: int) -> Object:
    if depth > DEPTH_MAX:
        raise bad_request("the body is nested too deeply")
    result: Object = {}
    for number, raw in _pairs(data):
        field = message.by_number.get(number)
        if field is None or field.type == "Any":
            continue
        if field.inline:
            result.update(_message(load()[field.type], _bytes(raw), depth + 1))
        else:
            _add(result, field, raw, depth)
    return result


def _add(result: Object, field: Field, raw: bytes | int, depth: int) -> None:
    match field.containers:
        case ():
            value = _value(field.type, raw, depth)
            if field.pointer or value not in (None, "", 0, False, {}):
                result[field.name] = value
        case ("[]",):
            items = result.setdefault(field.name, [])
            assert isinstance(items, list)
            if isinstance(raw, bytes) and field.type in ("int32", "int64"):
                items.extend(_packed(raw))
            else:
                items.append(_value(field.type, raw, depth))
        case ("{}", *rest):
            entries = result.setdefault(field.name, {})
            assert isinstance(entries, dict)
            entry = dict(_pairs(_bytes(raw)))
            inner = entry.get(2, b"")
            if rest:
                # A list as a map's value is a message of its own, whose items are field 1.
                entries[_text(entry.get(1, b""))] = [
                    _value(field.type, item, depth) for _, item in _pairs(_bytes(inner))
                ]
            else:
                entries[_text(entry.get(1, b""))] = _value(field.type, inner, depth)


def _value(kind: str, raw: bytes | int, depth: int) -> Json:
    match kind:
        case "string":
            return _text(raw)
        case "int32" | "int64":
            return _signed(_number(raw))
        case "bool":
            return bool(_number(raw))
        case "bytes":
            return base64.b64encode(_bytes(raw)).decode()
        case "Time" | "MicroTime":
            return _time(_bytes(raw), micro=kind == "MicroTime")
        case "Quantity":
            return _text(dict(_pairs(_bytes(raw))).get(1, b""))
        case "IntOrString":
            parts = dict(_pairs(_bytes(raw)))
            return _text(parts.get(3, b"")) if parts.get(1, 0) else _signed(_number(parts.get(2, 0)))
    return _message(load()[kind], _bytes(raw), depth + 1)


def _time(data: bytes, *, micro: bool) -> str | None:
    parts = dict(_pairs(data))
    if not parts:
        return None
    moment = datetime.fromtimestamp(_signed(_number(parts.get(1, 0))), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{moment}.{_number(parts.get(2, 0)) // 1000:06}Z" if micro else f"{moment}Z"


def _pairs(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield field numbers with their raw values: bytes for length-delimited fields, otherwise a number."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                value, at = _varint(data, at)
                yield tag >> 3, value
            case 2:
                length, at = _varint(data, at)
                yield tag >> 3, _slice(data, at, length)
                at += length
            case 1 | 5 as wire:
                length = 8 if wire == 1 else 4
                yield tag >> 3, int.from_bytes(_slice(data, at, length), "little")
                at += length
            case other:
                raise bad_request(f"the body has a protobuf field of wire type {other}")


def _slice(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise bad_request("the body ends within a protobuf field")
    return data[at : at + length]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise bad_request("the body ends within a protobuf number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise bad_request("the body has an overlong protobuf number")


def _packed(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield _signed(value)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _bytes(raw: bytes | int) -> bytes:
    if isinstance(raw, int):
        raise bad_request("the body has a number where bytes belong")
    return raw


def _number(raw: bytes | int) -> int:
    if isinstance(raw, bytes):
        raise bad_request("the body has bytes where a number belongs")
    return raw


def _text(raw: bytes | int) -> str:
    try:
        return _bytes(raw).decode()
    except UnicodeDecodeError:
        raise bad_request("the body has text that is not UTF-8") from None
