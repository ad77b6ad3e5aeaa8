"""JSON of API servers and of agents: parsed within bounds, compared exactly, written as safe text. Pure.

Agents choose bodies, and API servers answer with what agents have stored. So nothing here trusts their shape:
nesting, number of values, duplicate keys and characters have bounds or a fixed treatment.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Final, NoReturn, TypeAlias

from audit.escape import escape

Value: TypeAlias = "dict[str, Value] | list[Value] | str | int | float | bool | None"
# The keys that lead to a value. A list's element has its index as a key, or its name (`Named`).
Step: TypeAlias = "str | int | Named"
Steps: TypeAlias = tuple[Step, ...]

# Far more than any object of Kubernetes has. Walks of a value are recursive.
DEPTH_MAX: Final = 100
# 1 MiB of `[],` would take 30 MB of memory and seconds. A large CustomResourceDefinition has 30,000 values.
VALUES_MAX: Final = 50_000

_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_PLAIN_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")


class NotReadable(Exception):
    """A text that is no JSON, or that exceeds a bound; the message says which."""


class Named(str):
    """The step to an element of a list whose elements have unique names."""

    __slots__ = ()


def parse_json(data: bytes) -> Value:
    """Return the value of a JSON text; raises NotReadable.

    Duplicate keys are refused: two readers may take different ones.
    """
    if _values_in(data) > VALUES_MAX and _values_in(_STRING.sub(b"", data)) > VALUES_MAX:
        raise NotReadable(f"it has more than {VALUES_MAX} values")
    try:
        value: Value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number, parse_float=_finite
        )
    except RecursionError as error:
        raise NotReadable(f"it is nested deeper than {DEPTH_MAX}") from error
    except ValueError as error:
        # A broken text, invalid UTF-8, or a number of thousands of digits. The message may quote the text.
        raise NotReadable("it is no JSON") from error
    if depth_exceeds(value, DEPTH_MAX):
        raise NotReadable(f"it is nested deeper than {DEPTH_MAX}")
    return value


def _values_in(data: bytes) -> int:
    """Return a bound of the values of a JSON text. Characters within strings count as well."""
    return sum(map(data.count, (b",", b"[", b"{")))


def _unique(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotReadable("it has duplicate keys")
    return found


def _no_number(text: str) -> NoReturn:
    raise NotReadable(f"{text} is no JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotReadable("a number is too large")
    return number


def depth_exceeds(value: Value, depth_max: int) -> bool:
    """Whether a value is nested deeper than that. It is not recursive."""
    level: list[Value] = [value]
    for _ in range(depth_max + 1):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return False
    return True


def _inner(value: Value) -> Iterator[Value]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def leaves(value: Value, steps: Steps = ()) -> Iterator[tuple[Steps, Value]]:
    """Return the leaves of a value, each with its steps. An empty object or list is a leaf too."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, (*steps, key))
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, (*steps, index))
    else:
        yield steps, value


def at(value: Value, *keys: str) -> Value:
    """Return the value under these keys of nested objects; None if there is none."""
    for key in keys:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def text_at(value: Value, *keys: str) -> str:
    """Return the string under these keys; "" if there is none."""
    found = at(value, *keys)
    return found if isinstance(found, str) else ""


def items_at(value: Value, *keys: str) -> list[Value]:
    """Return the list under these keys; an empty one if there is none."""
    found = at(value, *keys)
    return found if isinstance(found, list) else []


def same(one: Value, other: Value) -> bool:
    """Whether two values are the same JSON. In Python, True equals 1 and 1.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(inner, other[key]) for key, inner in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def canonical(value: object) -> bytes:
    """Return the one text of a value, to digest it. Lone surrogates, which JSON can have, are escaped."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def shown_json(value: Value, *, pretty: bool = False) -> str:
    """Return a value as JSON that is safe to show: unusual characters are escaped as JSON escapes them."""
    text = json.dumps(value, ensure_ascii=False, indent=2 if pretty else None, sort_keys=True)
    return "\n".join(map(safe, text.split("\n"))) if pretty else safe(text)


def safe(text: str) -> str:
    """Escape controls, right-to-left and combining characters, as JSON does: `\\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_safe_character, text))


def _safe_character(character: str) -> str:
    if character == "\\" or escape(character) == character:
        return character
    # Beyond U+FFFF, JSON has a pair of surrogates.
    return json.dumps(character)[1:-1] if character != "\x7f" else "\\u007f"


def path_of(steps: Steps) -> str:
    """Return the steps as people write them: `spec.containers[name=web].args[0]`."""
    path = ""
    for step in steps:
        if isinstance(step, Named):
            path += f"[name={_key(step)}]"
        elif isinstance(step, int):
            path += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            path += f".{step}" if path else step
        else:
            path += f"[{shown_json(str(step))}]"
    return path


def _key(text: str) -> str:
    return str(text) if _PLAIN_KEY.fullmatch(text) else shown_json(str(text))
