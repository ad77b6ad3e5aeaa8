"""Checks that all readers of a body read the same object. Pure.

An approver sees a body as the hub reads it. Readers of JSON differ in what they make of a key that occurs
twice. Readers of YAML differ in more: anchors, merge keys, and which plain words are booleans. The bytes are
bound as they are; these checks make sure that what was shown is what the API server reads.
"""

from __future__ import annotations

import json
from typing import Final, NoReturn

from proxy.hub.approvals.plan.refusal import CannotAskError

# kubectl and other clients send JSON under these types, which is YAML too.
_YAML: Final = frozenset({"application/yaml", "application/apply-patch+yaml"})


def media_type(content_types: tuple[bytes, ...]) -> str:
    """Return the media type in lower case without its parameters; empty if there is no header."""
    first = content_types[0] if content_types else b""
    return first.partition(b";")[0].strip().lower().decode("latin-1")


def is_json(media: str) -> bool:
    """Return whether the API server reads this type as JSON, or as YAML, which includes JSON.

    Without a Content-Type it reads JSON.
    """
    return media in {"", "application/json"} or media.endswith("+json") or media in _YAML


def check_body(content_types: tuple[bytes, ...], content_encodings: tuple[bytes, ...], body: bytes) -> None:
    """Raise CannotAskError if readers of the body may differ."""
    if len(content_types) > 1:
        raise CannotAskError(400, "the request has more than one Content-Type: send one")
    if not all(value.isascii() for value in content_types):
        # Go lowers U+0130 to an ASCII i, and would read a type of JSON where others read none.
        raise CannotAskError(400, "the request's Content-Type is not ASCII: send another one")
    if any(value.strip().lower() not in {b"", b"identity"} for value in content_encodings):
        raise CannotAskError(
            415,
            "a compressed body cannot be approved, since it is not shown: send it without Content-Encoding",
        )
    media = media_type(content_types)
    if not body or not is_json(media):
        return
    try:
        json.loads(
            body.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            # The values do not matter here, and long numbers take long to convert.
            parse_int=_no_value,
            parse_float=_no_value,
        )
    except RecursionError:
        raise CannotAskError(400, "the body cannot be approved: its JSON is nested too deeply") from None
    except ValueError:
        # Its text may hold parts of the body.
        raise _not_json(media) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise CannotAskError(
            400, "the body cannot be approved: an object of its JSON has a key twice. Send each key once"
        )
    for key in members:
        # Raises for half a surrogate pair: Go reads all of those as one character, so as equal keys.
        if not key.isascii():
            key.encode()
    return members


def _refuse_constant(_: str) -> NoReturn:
    raise ValueError


def _no_value(_: str) -> None:
    return None


def _not_json(media: str) -> CannotAskError:
    if media in _YAML:
        return CannotAskError(415, "a body of YAML cannot be approved: send the same object as JSON")
    return CannotAskError(400, "the body cannot be approved: it is not valid JSON in UTF-8")
