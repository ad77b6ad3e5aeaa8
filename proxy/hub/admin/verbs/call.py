"""One authenticated request of the admin API, and the reading of its body and query."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from proxy.hub.store.engines.errors import InvalidError
from proxy.hub.store.roles import Role

T = TypeVar("T")


class Call(msgspec.Struct, frozen=True):
    """One authenticated request."""

    path: dict[str, str]
    query: dict[str, str]
    body: bytes
    operator: str = ""
    """The operator's name in the trail."""
    at: float = 0.0
    """When it was complete, in epoch seconds; 0 in an entry of the reserve from an older version."""
    role: Role = Role.METRICS
    """The operator's role. An answer leaves out the parts that need another one."""
    last_event_id: str = ""
    """The cursor after which a stream goes on, from the header `Last-Event-ID`."""
    token: str = ""
    """The id of the operator's admin token."""
    person: str = ""
    """Whose token it is, for the role approver; "" for the others."""

    def __repr__(self) -> str:
        """Leave the body out: it may hold a secret."""
        return f"Call({self.path!r}, {self.query!r}, operator={self.operator!r})"

    def decode(self, shape: type[T]) -> T:
        """Read the body as this type; raises InvalidError, which names the field but never a value."""
        try:
            return msgspec.json.decode(self.body or b"{}", type=shape)
        except msgspec.ValidationError as error:
            raise InvalidError(f"the request's body: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidError("the request's body is not JSON") from error

    def convert(self, shape: type[T]) -> T:
        """Read the query as this type; raises InvalidError."""
        try:
            return msgspec.convert(self.query, type=shape, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidError(f"the request's query: {error}") from error
