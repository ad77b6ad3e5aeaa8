"""A request's body: what it holds, and what of it is shown. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import attrs

from proxy.hub.approvals.preview.difference import unhidden
from proxy.hub.approvals.preview.mask import Mask, masked
from proxy.hub.approvals.preview.values import (
    NotReadable,
    Steps,
    Value,
    leaves,
    parse_json,
    shown_json,
)

_COPIES: Final = frozenset({"copy", "move"})
_OPERATION_KEYS: Final = ("op", "path", "from")


@attrs.frozen
class Body:
    """A body that was read."""

    size: int
    value: Value = None
    unreadable: str = ""
    """Why its value is unknown; "" if it is known, or if there is no body."""

    @classmethod
    def of(cls, data: bytes) -> Body:
        """Return the body with these bytes. A text that cannot be parsed is not an error."""
        if not data:
            return cls(0)
        try:
            return cls(len(data), parse_json(data))
        except NotReadable as error:
            return cls(len(data), None, str(error))

    @property
    def operations(self) -> list[dict[str, Value]] | None:
        """The operations of a JSON patch; None for any other body.

        The Content-Type does not matter: a patch with a wrong one is still shown, so it is masked as one.
        """
        if not isinstance(self.value, list) or not self.value:
            return None
        found = [operation for operation in self.value if isinstance(operation, dict)]
        patched = len(found) == len(self.value) and all("op" in operation for operation in found)
        return found if patched else None

    @property
    def copies(self) -> bool:
        """Whether it makes the API server copy values that the body does not have."""
        return any(operation.get("op") in _COPIES for operation in self.operations or ())

    def written(self) -> Iterator[tuple[Steps, Value]]:
        """Return the leaves that the body writes, each with its steps."""
        operations = self.operations
        if operations is None:
            yield from leaves(self.value)
            return
        for operation in operations:
            if "value" in operation and operation.get("op") != "test":
                yield from leaves(operation["value"], pointed(operation))

    def shown(self, mask: Mask) -> str:
        """Return the masked body as JSON text; "" if there is none, or if it cannot be parsed."""
        if not self.size or self.unreadable:
            return ""
        operations = self.operations
        if operations is None:
            return shown_json(unhidden(masked(self.value, mask)), pretty=True)
        return "\n".join(_shown_operation(operation, mask) for operation in operations)


def _shown_operation(operation: dict[str, Value], mask: Mask) -> str:
    # Other keys have no meaning, so they are left out.
    kept = {key: operation[key] for key in _OPERATION_KEYS if isinstance(operation.get(key), str)}
    if "value" in operation:
        kept["value"] = unhidden(masked(operation["value"], mask, pointed(operation)))
    return shown_json(kept)


def pointed(operation: dict[str, Value]) -> Steps:
    """Return the steps of an operation's JSON pointer."""
    path = operation.get("path")
    if not isinstance(path, str):
        return ()
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:])
