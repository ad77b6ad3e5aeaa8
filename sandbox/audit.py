"""The sandbox's own audit log: one JSON line per request, in the format of audit.k8s.io/v1.

It is independent of Hawse's audit trail, so that tests can compare the two. A line with `unimpersonated`
marks a request of the relay's account without impersonation: none is expected. The two requests that the
relay makes for itself (`OWN_REQUESTS`) are not marked.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from types import TracebackType
from typing import TextIO

from sandbox.authn import User, split_service_account
from sandbox.objects import Object, encode, now_micro
from sandbox.requestinfo import RequestInfo
from sandbox.server import Request
from sandbox.status import StatusError

# All service accounts of this namespace belong to the relay.
RELAY_NAMESPACE = "hawse"
# The requests that a relay may make as itself: exact method, target and names of all headers.
OWN_REQUESTS = frozenset(
    ("GET", target, (b"accept", b"authorization", b"host", b"user-agent"))
    for target in ("/readyz", "/api/v1/namespaces/kube-system")
)
# The server accepts any Audit-ID, and truncates an overlong one.
ID_CHARS_MAX = 64


class AuditLog:
    """The file, written line by line; use it in a `with` block."""

    def __init__(self, path: Path) -> None:
        self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, event: Object) -> None:
        """Append one event."""
        if not self._file.closed:
            self._file.write(encode(event).decode("utf-8", "surrogateescape") + "\n")


class Record:
    """The audit record of one request; each of its stages is a line."""

    def __init__(self, log: AuditLog, request: Request, info: RequestInfo, peer: str) -> None:
        self._log = log
        self.id = request.header(b"audit-id")[:ID_CHARS_MAX] or str(uuid.uuid4())
        self._user: User | None = None
        self._impersonated: User | None = None
        self._as_itself = False
        names = tuple(sorted(name for name, _ in request.headers))
        self._admitted = (request.method, request.target, names) in OWN_REQUESTS
        forwarded = request.header(b"x-forwarded-for")
        self._event: Object = {
            "kind": "Event",
            "apiVersion": "audit.k8s.io/v1",
            "level": "Metadata",
            "auditID": self.id,
            "stage": "",
            "requestURI": request.target,
            "verb": info.verb,
            "sourceIPs": [*([forwarded] if forwarded else []), peer],
            "userAgent": request.header(b"user-agent"),
            "requestReceivedTimestamp": now_micro(),
        }
        if info.is_resource:
            reference = {
                "resource": info.resource,
                "namespace": info.namespace,
                "name": info.name,
                "apiGroup": info.group,
                "apiVersion": info.version,
                "subresource": info.subresource,
            }
            self._event["objectRef"] = {key: value for key, value in reference.items() if value}

    def authenticated(self, user: User) -> None:
        """Set the authenticated user."""
        self._user = user

    def acts_as(self, user: User | None) -> None:
        """Set the impersonated user, or None without impersonation."""
        self._impersonated = user
        self._as_itself = user is None and not self._admitted

    def started(self, code: int) -> None:
        """Record that a long answer has begun."""
        self._write("ResponseStarted", code, None)

    def complete(self, code: int, error: StatusError | None = None) -> None:
        """Record that the request is over."""
        self._write("ResponseComplete", code, error)

    def _write(self, stage: str, code: int, error: StatusError | None) -> None:
        status: Object = {"metadata": {}, "code": code}
        if error is not None:
            status = {**status, "status": "Failure", "message": error.message, "reason": error.reason}
        event: Object = {
            **self._event,
            "stage": stage,
            "responseStatus": status,
            "stageTimestamp": now_micro(),
        }
        if self._user is not None:
            event["user"] = self._user.to_json()
            account = split_service_account(self._user.name)
            if account and account[0] == RELAY_NAMESPACE and self._as_itself:
                event["unimpersonated"] = True
        if self._impersonated is not None:
            event["impersonatedUser"] = self._impersonated.to_json()
        self._log.write(event)
