"""The API server: passes each request through the filters in the real server's order, then dispatches it.

Authentication, audit, impersonation, authorisation; then discovery, the OpenAPI documents, or a resource.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

from sandbox import discovery, openapi, requestinfo
from sandbox.audit import AuditLog, Record
from sandbox.authn import Authenticator, User
from sandbox.impersonation import impersonate
from sandbox.objects import encode
from sandbox.rbac import Attributes, Authorizer
from sandbox.requestinfo import RequestInfo
from sandbox.server import Answer, Exchange, Request, Response, Send, Streamed, Upgrade, UpgradeRefused
from sandbox.status import StatusError, method_not_allowed

# The flow schema and priority level of API Priority and Fairness, which the real server names in each answer.
_COMMON_HEADERS = (
    ("Cache-Control", "no-cache, private"),
    ("X-Kubernetes-Pf-Flowschema-Uid", "5c1bd2cc-5d5b-4c37-b4ed-1b0dd4aa6d2c"),
    ("X-Kubernetes-Pf-Prioritylevel-Uid", "8a6b7c52-26f7-4d0c-8d4f-d0d2c1f1a3b5"),
)
_HEALTH = ("/healthz", "/livez", "/readyz")
_CHECKS = ("ping", "log", "etcd")

Resources = Callable[[Exchange, RequestInfo, User], Awaitable[Answer]]


@attrs.frozen
class ApiServer:
    """Handles requests; `resources` answers authorised requests for resources."""

    authenticator: Authenticator
    authorizer: Authorizer
    audit_log: AuditLog
    address: str
    resources: Resources

    async def handle(self, exchange: Exchange) -> Answer:
        """Answer one request."""
        request = exchange.request
        info = requestinfo.parse(request.method, request.path, request.query)
        record = Record(self.audit_log, request, info, exchange.peer)
        try:
            answer = await self._admit(exchange, info, record)
        except StatusError as error:
            record.complete(error.code, error)
            return self._with_headers(Response.of_error(error), record)
        if isinstance(answer, Response):
            record.complete(answer.status)
        return self._with_headers(answer, record)

    async def _admit(self, exchange: Exchange, info: RequestInfo, record: Record) -> Answer:
        request = exchange.request
        user = self.authenticator.authenticate(request)
        record.authenticated(user)
        acting = impersonate(request, user, self.authorizer, info)
        record.acts_as(acting)
        if acting is not None:
            user = acting
        for attributes in _needed(request, info, user):
            refusal = self.authorizer.refusal(attributes)
            if refusal is not None:
                raise refusal
        if info.is_resource:
            return await self.resources(exchange, info, user)
        return self._path(request)

    def _path(self, request: Request) -> Response:
        """Answer a request for a non-resource path."""
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        if request.path in _HEALTH:
            return _health(request)
        if request.path in {"/version", "/version/"}:
            return Response(200, encode(discovery.SERVER_VERSION))
        if request.path == "/openapi/v2":
            return openapi.answer_v2(request)
        if request.path.startswith("/openapi/v3"):
            found = openapi.answer(request)
        else:
            found = discovery.answer(request, self.address)
        return found or Response(404, b"404 page not found\n", "text/plain; charset=utf-8")

    def _with_headers(self, answer: Answer, record: Record) -> Answer:
        """Add the headers of every answer, and record the end of a long one in the audit log."""
        match answer:
            case Upgrade():
                return Upgrade(_recorded_upgrade(answer, record))
            case Streamed():
                return attrs.evolve(
                    answer, headers=_headers(answer, record), produce=_recorded_stream(answer, record)
                )
            case Response():
                return attrs.evolve(answer, headers=_headers(answer, record))


def _headers(answer: Response | Streamed, record: Record) -> list[tuple[str, str]]:
    own = {name for name, _ in answer.headers}
    common = [header for header in _COMMON_HEADERS if header[0] not in own]
    return [("Audit-Id", record.id), *common, *answer.headers]


def _recorded_stream(answer: Streamed, record: Record) -> Callable[[Send], Awaitable[None]]:
    async def produce(send: Send) -> None:
        record.started(answer.status)
        try:
            await answer.produce(send)
        finally:
            record.complete(answer.status)

    return produce


def _recorded_upgrade(answer: Upgrade, record: Record) -> Callable[[trio.abc.Stream, bytes], Awaitable[None]]:
    async def serve(stream: trio.abc.Stream, leftover: bytes) -> None:
        code = 101
        record.started(code)
        try:
            await answer.serve(stream, leftover)
        except UpgradeRefused as refused:
            code = refused.response.status
            raise UpgradeRefused(
                attrs.evolve(refused.response, headers=_headers(refused.response, record))
            ) from refused
        finally:
            record.complete(code)

    return serve


def _needed(request: Request, info: RequestInfo, user: User) -> list[Attributes]:
    """The required permissions; a stream over WebSocket needs `create` besides the `get` of its method."""
    needed = [Attributes.of_request(user, info)]
    streams = info.subresource in ("exec", "attach", "portforward") and info.resource == "pods"
    websocket = request.wants_upgrade and request.header(b"upgrade").lower() == "websocket"
    if streams and info.verb == "get" and websocket:
        needed.append(attrs.evolve(needed[0], verb="create"))
    return needed


def _health(request: Request) -> Response:
    if "verbose" not in request.query:
        return Response(200, b"ok", "text/plain; charset=utf-8")
    lines = [f"[+]{check} ok" for check in _CHECKS]
    text = "\n".join([*lines, f"{request.path[1:]} check passed", ""])
    return Response(200, text.encode(), "text/plain; charset=utf-8")
