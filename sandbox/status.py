"""The API server's errors: each is a Status with the real one's code, reason, details and message."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from sandbox.objects import Json, Object


@attrs.frozen
class GroupResource:
    """A resource of an API group, printed as `pods` or `deployments.apps`."""

    group: str
    resource: str

    def __str__(self) -> str:
        return f"{self.resource}.{self.group}" if self.group else self.resource


class StatusError(Exception):
    """An answer other than success; raised by handlers and written by the server."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Object | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.headers = tuple(headers)

    def to_json(self) -> Object:
        """Return the v1 Status."""
        body: Object = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details is not None:
            body["details"] = self.details
        body["code"] = self.code
        return body


def _details(what: GroupResource, name: str) -> Object:
    fields = {"name": name, "group": what.group, "kind": what.resource}
    return {key: value for key, value in fields.items() if value}


def not_found(what: GroupResource, name: str) -> StatusError:
    return StatusError(404, "NotFound", f"{what} {quote(name)} not found", _details(what, name))


def no_such_path() -> StatusError:
    """The answer to a GET of an unknown path."""
    return StatusError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(what: GroupResource, name: str) -> StatusError:
    return StatusError(409, "AlreadyExists", f"{what} {quote(name)} already exists", _details(what, name))


def conflict(what: GroupResource, name: str, why: str) -> StatusError:
    message = f"Operation cannot be fulfilled on {what} {quote(name)}: {why}"
    return StatusError(409, "Conflict", message, _details(what, name))


def modified(what: GroupResource, name: str) -> StatusError:
    """The conflict of an update that was based on an older version."""
    return conflict(
        what,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )


def forbidden(what: GroupResource, name: str, why: str) -> StatusError:
    if not what.resource:
        message = f"forbidden: {why}"
    elif not name:
        message = f"{what} is forbidden: {why}"
    else:
        message = f"{what} {quote(name)} is forbidden: {why}"
    return StatusError(403, "Forbidden", message, _details(what, name))


def unauthorized() -> StatusError:
    return StatusError(401, "Unauthorized", "Unauthorized")


def bad_request(message: str) -> StatusError:
    return StatusError(400, "BadRequest", message)


@attrs.frozen
class Fault:
    """One error in one field: `reason` is its machine-readable cause."""

    reason: str
    field: str
    message: str


def missing_field(field: str) -> Fault:
    return Fault("FieldValueRequired", field, "Required value")


def invalid_field(field: str, value: Json, why: str) -> Fault:
    shown = quote(value) if isinstance(value, str) else str(value)
    return Fault("FieldValueInvalid", field, f"Invalid value: {shown}: {why}")


def invalid(group: str, kind: str, name: str, faults: Sequence[Fault]) -> StatusError:
    """The answer to an invalid object."""
    messages = [f"{fault.field}: {fault.message}" for fault in faults]
    listed = messages[0] if len(messages) == 1 else f"[{', '.join(messages)}]"
    what = f"{kind}.{group}" if group else kind
    causes: list[Json] = [
        {"reason": fault.reason, "message": fault.message, "field": fault.field} for fault in faults
    ]
    details: Object = {**_details(GroupResource(group, kind), name), "causes": causes}
    return StatusError(422, "Invalid", f"{what} {quote(name)} is invalid: {listed}", details)


def method_not_allowed() -> StatusError:
    return StatusError(
        405, "MethodNotAllowed", "the server does not allow this method on the requested resource", {}
    )


def expired(message: str) -> StatusError:
    return StatusError(410, "Expired", message)


def too_large() -> StatusError:
    message = f"Request entity too large: limit is {BODY_BYTES_MAX}"
    return StatusError(413, "RequestEntityTooLarge", message)


def unsupported_media_type(accepted: Sequence[str]) -> StatusError:
    message = (
        "the body of the request was in an unknown format - "
        f"accepted media types include: {', '.join(accepted)}"
    )
    return StatusError(415, "UnsupportedMediaType", message)


def internal_error(why: str) -> StatusError:
    return StatusError(
        500, "InternalError", f"Internal error occurred: {why}", {"causes": [{"message": why}]}
    )


# The real server's limit for a body (3 MiB).
BODY_BYTES_MAX = 3 * 1024 * 1024


def quote(value: str) -> str:
    """Quote a string as Go's %q does, as far as messages here need it."""
    body = value.replace("\\", "\\\\").replace('"', '\\"')
    escaped = "".join(char if char.isprintable() else _escape(char) for char in body)
    return f'"{escaped}"'


def _escape(char: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return short.get(char) or (f"\\x{ord(char):02x}" if ord(char) < 0x80 else f"\\u{ord(char):04x}")
