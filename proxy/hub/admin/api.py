"""The admin API: authenticates the operator, runs the action, and records an audit event for each.

JSON over HTTP on a separate listener. Every path but /healthz needs the operator's bearer token: /metrics,
and the actions of proxy.hub.admin.verbs.verb. Each needs a role of the token (proxy.hub.admin.operators).

A refusal is {"error": {"code", "message"}}. The intent of a change is on the disk before the change is made.
So while the trail cannot be written, only revocations are made, as declared in the table of actions.

If the trail or the store cannot take a revocation, it is put into the reserve before it is made, and the
answer has a `notice` about that. If the reserve fails as well, the revocation is made in memory, and the
answer is a 507: in force, but not recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Protocol

import attrs
import msgspec
import trio
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from audit.errors import AuditUnavailable
from audit.events import new_event
from audit.record import EXCERPT_CHARACTERS_MAX, Actor, Client, Decision, Event, Kind, Phase, text, utc
from audit.record import Cluster as AuditCluster
from audit.record import Request as AuditRequest
from audit.record import Response as AuditResponse
from proxy.hub.admin.administration import ACTIONS, Action, Administration
from proxy.hub.admin.operators import Operators, RefusedError
from proxy.hub.admin.revocations import Revocation, Revocations, Where
from proxy.hub.admin.verbs.answers import Done
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.verb import METRICS, Endpoint
from proxy.hub.authorize.events import without_bearer
from proxy.hub.home.files.reserve import ReserveError
from proxy.hub.membership.spread import Spread, notice_of
from proxy.hub.store.engines.errors import InvalidError, StoreError, StoreUnavailableError

# The largest bodies are policies: one with 500 rules has 100 KB.
BODY_BYTES_MAX = 256 * 1024

_SECURITY_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_log = logging.getLogger("hawse.hub.admin")


class Recorder(Protocol):
    """The part of the audit recorder that this API uses."""

    async def intent(self, event: Event) -> None:
        """Return once the event is durable; raises AuditUnavailable."""
        ...

    def complete(self, event: Event) -> None:
        """Queue the end of an action."""
        ...

    def keep(self, event: Event, settled: Callable[[], None]) -> None:
        """Write an event once, as soon as the trail can be written."""
        ...


def admin_app(
    administration: Administration,
    recorder: Recorder,
    metrics: CollectorRegistry,
    clock: Callable[[], float],
    revocations: Revocations,
    spread: Spread | None = None,
) -> Starlette:
    """Build the ASGI application; it needs no lifespan. Without `spread` there are no other hubs."""
    endpoints = _Endpoints(administration, recorder, metrics, clock, revocations)
    if spread is not None:
        endpoints.spread = spread
    app = Starlette(
        routes=[
            Route("/healthz", endpoints.healthz, methods=["GET"]),
            Route(METRICS.path, endpoints.metrics_page, methods=[METRICS.method]),
            *(Route(action.path, endpoints.serve(action), methods=[action.method]) for action in ACTIONS),
        ],
        exception_handlers={HTTPException: _unrouted},
    )
    # A redirect would be an answer without authentication.
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """Wraps every action: checks the operator's token and role, records the event, and formats the answer."""

    def __init__(
        self,
        administration: Administration,
        recorder: Recorder,
        metrics: CollectorRegistry,
        clock: Callable[[], float],
        revocations: Revocations,
    ) -> None:
        self._admin = administration
        self._revocations = revocations
        self._recorder = recorder
        self._metrics = metrics
        self._clock = clock
        self.spread = Spread(administration.directory)
        self._operators = Operators(
            administration.directory, administration.pepper, clock, administration.local_token
        )
        # A separate thread for the reserve: the shared ones may all be waiting for a resolver.
        self._reserve_thread = trio.CapacityLimiter(1)

    async def healthz(self, request: Request) -> Response:
        """Answer that the loop runs, without authentication."""
        return Response(b"ok\n", media_type="text/plain", headers=_SECURITY_HEADERS)

    async def metrics_page(self, request: Request) -> Response:
        """Answer a scrape. It is no action, so only a refusal is recorded."""
        try:
            self._operators.admit(request, METRICS)
        except RefusedError as refused:
            return self._refuse(request, METRICS, refused)
        return Response(
            generate_latest(self._metrics), media_type=CONTENT_TYPE_LATEST, headers=_SECURITY_HEADERS
        )

    def serve(self, action: Action) -> Callable[[Request], Awaitable[Response]]:
        """Make the endpoint of one action."""

        async def endpoint(request: Request) -> Response:
            try:
                actor = self._operators.admit(request, action)
            except RefusedError as refused:
                return self._refuse(request, action, refused)
            return await self._act(action, actor, request)

        return endpoint

    async def _act(self, action: Action, actor: Actor, request: Request) -> Response:
        event = self._event(Kind.ADMIN, request, actor)
        event = replace(event, req=_audited(request, action))
        try:
            call = await _read(request, actor.name, self._clock)
        except ClientDisconnect:
            self._end(event, 0, "the operator disconnected before the request was complete")
            raise
        except InvalidError as error:
            self._end(event, 413, str(error))
            return _error(413, "too_large", str(error))
        unrecorded = ""
        if action.changes:
            event = replace(event, phase=Phase.INTENT)
            try:
                await self._recorder.intent(event)
            except AuditUnavailable as error:
                unrecorded = str(error)
                if not self._revokes(action, call):
                    return _error(503, "audit_unavailable", f"nothing was changed: {unrecorded}")
        try:
            # Checked again, since the body and the intent may have taken a long time.
            self._operators.admit(request, action)
        except RefusedError as refused:
            known = refused.actor.name
            why = refused.note if known else "the admin token was revoked before the request was complete"
            self._end(event, refused.status, why)
            return _refusal(refused)
        if not unrecorded:
            return await self._carry_out(action, call, event, None)
        response: Response
        # A revocation in the reserve is carried out even if the operator disconnects.
        with trio.CancelScope(shield=True):
            revoked = await self._keep(action, call, event, why=unrecorded, recorded=False)
            response = await self._carry_out(action, call, event, revoked)
        return response

    async def _carry_out(
        self, action: Action, call: Call, event: Event, revoked: _Revoked | None
    ) -> Response:
        before = self._admin.directory.applied.version
        try:
            try:
                done = await self._run(self._admin, action, call)
            except StoreUnavailableError as error:
                if not self._revokes(action, call):
                    raise
                with trio.CancelScope(shield=True):
                    if revoked is None:
                        revoked = await self._keep(action, call, event, why=str(error), recorded=True)
                    revoked = attrs.evolve(revoked, in_memory=True)
                    in_store = partial(self._settled, revoked, Where.STORE)
                    done = await self._run(self._admin.in_memory(in_store), action, call)
            else:
                await self._settle_store(revoked)
        except StoreError as error:
            await self._settle_store(revoked)
            self._end(event, error.status, str(error), revoked)
            message = str(error)
            # "is locked already": it may be a repeated command, and other hubs may still lack the lock.
            if self._revokes(action, call) and (elsewhere := notice_of(await self.spread.wait())):
                message = f"{message}; {elsewhere}"
            return _error(error.status, error.code, message)
        except BaseException as error:
            # A bug or a cancellation: only the store shows whether the change was made.
            self._end(event, 500, f"ended by {type(error).__name__}", revoked)
            raise
        status = 201 if done.created else 200
        if done.cluster is not None:
            event = replace(event, cluster=AuditCluster(done.cluster.id, done.cluster.name))
        self._end(event, status, done.note, revoked)
        # Not before the end: an operator who leaves meanwhile has made the change.
        elsewhere = ""
        if revoked is not None and revoked.in_memory:
            elsewhere = notice_of(self.spread.others)
        elif action.changes and self._admin.directory.applied.version != before:
            elsewhere = notice_of(await self.spread.wait())
        if revoked is None:
            return _json(status, {**done.body, "notice": elsewhere} if elsewhere else done.body)
        if revoked.kept:
            _log.warning("%s %s is kept in the reserve: %s", action.verb, action.resource, revoked.why)
        else:
            name = call.path.get("name", "")
            _log.error(
                "%s %s %s by %s: %s",
                action.verb,
                action.resource,
                name,
                call.operator,
                revoked.explanation,
            )
        return revoked.answer(status, done, elsewhere)

    async def _run(self, administration: Administration, action: Action, call: Call) -> Done:
        running = action.run(administration, call)
        return running if isinstance(running, Done) else await running

    def _revokes(self, action: Action, call: Call) -> bool:
        try:
            return action.only_revokes(self._admin, call)
        except InvalidError:
            return False

    async def _keep(self, action: Action, call: Call, event: Event, *, why: str, recorded: bool) -> _Revoked:
        """Put a revocation into the reserve; if that fails, continue without it."""
        revocation = Revocation(event, recorded, action.method, action.path, call)
        try:
            await trio.to_thread.run_sync(self._revocations.keep, revocation, limiter=self._reserve_thread)
        except ReserveError as error:
            return _Revoked(event.eid, f"{why}; {error}", recorded, kept=False)
        return _Revoked(event.eid, why, recorded, kept=True)

    async def _settle_store(self, revoked: _Revoked | None) -> None:
        """Note that the store has a revocation, or has refused it."""
        if revoked is not None:
            # In a thread, since it may write to the disk.
            settle = partial(self._settled, revoked, Where.STORE)
            await trio.to_thread.run_sync(settle, limiter=self._reserve_thread)

    def _settled(self, revoked: _Revoked, where: Where) -> None:
        if revoked.kept:
            self._revocations.settled(revoked.eid, where)

    def _refuse(self, request: Request, endpoint: Endpoint, refused: RefusedError) -> Response:
        unknown = refused.status == 401
        event = self._event(Kind.AUTH_FAILED if unknown else Kind.ADMIN, request, refused.actor)
        audited = _audited(request, None if unknown else endpoint)
        self._end(replace(event, req=audited, decision=Decision("deny")), refused.status, refused.note)
        return _refusal(refused)

    def _event(self, kind: Kind, request: Request, actor: Actor) -> Event:
        return new_event(
            kind,
            actor,
            org=self._admin.directory.current.org,
            at=self._clock(),
            client=Client(
                request.client.host if request.client is not None else "",
                ", ".join(request.headers.getlist("user-agent")),
                "admin",
            ),
        )

    def _end(self, event: Event, status: int, note: str, revoked: _Revoked | None = None) -> None:
        ended = event.completed(utc(self._clock()), resp=AuditResponse(status), note=note)
        if revoked is None or revoked.recorded or not revoked.kept:
            self._recorder.complete(ended)
        else:
            self._recorder.keep(ended, partial(self._settled, revoked, Where.TRAIL))


@attrs.frozen
class _Revoked:
    """A revocation that the trail or the store could not take."""

    eid: str
    why: str
    recorded: bool
    """Whether the trail has its intent."""
    kept: bool
    """Whether it is in the reserve."""
    in_memory: bool = False
    """Whether it is in force in memory, since the store could not take it."""

    @property
    def explanation(self) -> str:
        """The state of a revocation that is not in the reserve, for the operator."""
        until = "in force until the hub restarts" if self.in_memory else "in force"
        return f"{until}, not {'stored' if self.recorded else 'recorded'}: {self.why}"

    def answer(self, status: int, done: Done, elsewhere: str) -> Response:
        """Build the answer to a revocation that was made; `elsewhere` names hubs that lack it."""
        if not self.kept:
            return _error(507, "not_recorded", self.explanation)
        lacks = (
            "trail and store"
            if self.in_memory and not self.recorded
            else "store"
            if self.recorded
            else "trail"
        )
        notice = f"in force, and kept in the hub's reserve until the {lacks} can take it: {self.why}"
        if elsewhere:
            notice = f"{notice}; {elsewhere}"
        return _json(status, {**done.body, "notice": notice})


async def _read(request: Request, operator: str, clock: Callable[[], float]) -> Call:
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                raise InvalidError(f"the request's body exceeds {BODY_BYTES_MAX} bytes: send less at once")
    return Call(request.path_params, dict(request.query_params), bytes(body), operator, clock())


def _audited(request: Request, endpoint: Endpoint | None) -> AuditRequest:
    # The raw path as received; ASGI's `path` is decoded.
    raw = request.scope.get("raw_path") or request.scope["path"].encode()
    query = request.scope.get("query_string", b"")
    target = text(without_bearer(raw + b"?" + query if query else raw))
    audited = AuditRequest(request.method, target)
    if len(target) > EXCERPT_CHARACTERS_MAX:
        # No action needs a longer target, and a read-only token must not fill the disk with targets.
        audited = replace(audited, target_kept=EXCERPT_CHARACTERS_MAX, target_bytes=len(target))
    if endpoint is None:
        return audited
    name = request.path_params.get("name", "")
    return replace(audited, verb=endpoint.verb, resource=endpoint.resource, name=name)


async def _unrouted(request: Request, error: Exception) -> Response:
    """Answer requests without a route in the same form as every other refusal."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
    answer = _error(error.status_code, code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _refusal(refused: RefusedError) -> Response:
    answer = _error(refused.status, refused.code, str(refused))
    if refused.status == 401:
        answer.headers["www-authenticate"] = 'Bearer realm="hawse admin"'
    return answer


def _error(status: int, code: str, message: str) -> Response:
    return _json(status, {"error": {"code": code, "message": message}})


def _json(status: int, body: Mapping[str, object]) -> Response:
    return Response(
        msgspec.json.encode(body) + b"\n",
        status_code=status,
        media_type="application/json",
        headers=_SECURITY_HEADERS,
    )
