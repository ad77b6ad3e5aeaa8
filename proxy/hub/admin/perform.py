"""Runs one action of the admin API for one caller, and records an audit event for it.

The intent of a change is on the disk before the change is made. So while the trail cannot be written, only
revocations are made, as declared in the table of actions.

If the trail or the store cannot take a revocation, it is put into the reserve before it is made, and the
answer has a `notice` about that. If the reserve fails as well, the revocation is made in memory, and the
answer is a 507: in force, but not recorded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import Protocol

import attrs
import trio
from msgspec.structs import replace
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from audit.bounds import EXCERPT_CHARACTERS_MAX
from audit.errors import AuditUnavailable
from audit.events import new_event
from audit.record import Actor, Client, Decision, Event, Kind, Phase, text, utc
from audit.record import Cluster as AuditCluster
from audit.record import Request as AuditRequest
from audit.record import Response as AuditResponse
from proxy.hub.admin.administration import Action, Administration
from proxy.hub.admin.replies import SECURITY_HEADERS, error_reply, json_reply, refusal, tagged_reply
from proxy.hub.admin.revocations import Revocation, Revocations, Where
from proxy.hub.admin.streams.download import DownloadReply
from proxy.hub.admin.streams.sse import EventStreams, TooManyStreamsError
from proxy.hub.admin.verbs.answers import Answer, Done, Download, Followed
from proxy.hub.admin.verbs.call import Call
from proxy.hub.admin.verbs.callers import CALLER, Caller, RefusedError
from proxy.hub.admin.verbs.verb import Endpoint, Verb
from proxy.hub.authorize.events import without_bearer
from proxy.hub.home.files.reserve import ReserveError
from proxy.hub.membership.spread import Spread, notice_of
from proxy.hub.store.engines.errors import InvalidError, StoreError, StoreUnavailableError

# The largest bodies are policies: one with 500 rules has 100 KB.
BODY_BYTES_MAX = 256 * 1024
# A cursor of the trail's stream has some tens of characters.
LAST_EVENT_ID_CHARACTERS_MAX = 1024

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


class Reads(Protocol):
    """Records reads. Those of people are merged, so that a page that is open does not fill the trail."""

    def read(self, caller: Caller, verb: Verb, event: Event) -> None:
        """Record one read, by the event of its end."""
        ...


@attrs.frozen
class EachRead:
    """Records each read by itself."""

    recorder: Recorder

    def read(self, caller: Caller, verb: Verb, event: Event) -> None:
        """Record one read."""
        self.recorder.complete(event)


@attrs.frozen
class Performer:
    """Runs actions: the intent, the second check of the caller, the action, the end, the reserve."""

    admin: Administration
    recorder: Recorder
    revocations: Revocations
    clock: Callable[[], float]
    spread: Spread
    reads: Reads
    streams: EventStreams
    # A separate thread for the reserve: the shared ones may all be waiting for a resolver.
    _reserve_thread: trio.CapacityLimiter = attrs.Factory(lambda: trio.CapacityLimiter(1))

    async def perform(self, action: Action, caller: Caller, request: Request) -> Response:
        """Run an action for a caller that was admitted, and record it; raises ClientDisconnect."""
        event = self._event(Kind.ADMIN, request, caller.actor, caller.mode)
        event = replace(event, req=_audited(request, action))
        try:
            call = await _read(request, caller, self.clock)
        except ClientDisconnect:
            self._end(event, 0, "the operator disconnected before the request was complete")
            raise
        except InvalidError as error:
            self._end(event, 413, str(error))
            return error_reply(413, "too_large", str(error))
        unrecorded = ""
        if action.changes:
            event = replace(event, phase=Phase.INTENT)
            try:
                await self.recorder.intent(event)
            except AuditUnavailable as error:
                unrecorded = str(error)
                if not self._revokes(action, call):
                    return error_reply(503, "audit_unavailable", f"nothing was changed: {unrecorded}")
        # Checked again, since the body and the intent may have taken a long time.
        if (refused := caller.still_valid()) is not None:
            known = refused.actor.name
            why = refused.note if known else "the admin token was revoked before the request was complete"
            self._end(event, refused.status, why)
            return refusal(refused)
        if not action.changes:
            return await self._look(action, caller, call, event, request)
        if not unrecorded:
            return await self._carry_out(action, caller, call, event, None)
        response: Response
        # A revocation in the reserve is carried out even if the operator disconnects.
        with trio.CancelScope(shield=True):
            revoked = await self._keep(action, call, event, why=unrecorded, recorded=False)
            response = await self._carry_out(action, caller, call, event, revoked)
        return response

    async def _look(
        self, action: Action, caller: Caller, call: Call, event: Event, request: Request
    ) -> Response:
        """Run an action that only reads."""
        status, note, answer = 500, "", None
        try:
            answer = await self._run(self.admin, action, call)
            response = await self._reply(answer, action, caller, request)
            status, note = response.status_code, answer.note
        except StoreError as error:
            status, note = error.status, str(error)
            response = error_reply(status, error.code, note)
        except BaseException as error:
            note = f"ended by {type(error).__name__}"
            raise
        finally:
            if isinstance(answer, Done) and answer.cluster is not None:
                event = replace(event, cluster=AuditCluster(answer.cluster.id, answer.cluster.name))
            self.reads.read(caller, action, self._ended(event, status, note))
        return response

    async def _reply(self, answer: Answer, action: Action, caller: Caller, request: Request) -> Response:
        """Return the HTTP answer to an action that was carried out."""
        if request.method == "HEAD" and not isinstance(answer, Done):
            await (answer.source if isinstance(answer, Followed) else answer.chunks).aclose()
            return Response(headers=SECURITY_HEADERS)
        if isinstance(answer, Followed):
            try:
                return self.streams.serve(caller, answer.source)
            except TooManyStreamsError as error:
                await answer.source.aclose()
                return error_reply(503, "too_many_streams", str(error))
        if isinstance(answer, Download):
            return DownloadReply(caller, answer)
        if not action.etag:
            return json_reply(answer.status, answer.body)
        return tagged_reply(answer, request.headers.getlist("if-none-match"))

    async def _carry_out(
        self, action: Action, caller: Caller, call: Call, event: Event, revoked: _Revoked | None
    ) -> Response:
        """Make a change."""
        before = self.admin.directory.applied.version
        try:
            try:
                done = await self._run(self.admin, action, call)
            except StoreUnavailableError as error:
                if not self._revokes(action, call):
                    raise
                with trio.CancelScope(shield=True):
                    if revoked is None:
                        revoked = await self._keep(action, call, event, why=str(error), recorded=True)
                    revoked = attrs.evolve(revoked, in_memory=True)
                    in_store = partial(self._settled, revoked, Where.STORE)
                    done = await self._run(self.admin.in_memory(in_store), action, call)
            else:
                await self._settle_store(revoked)
        except StoreError as error:
            await self._settle_store(revoked)
            self._end(event, error.status, str(error), revoked)
            message = str(error)
            # "is locked already": it may be a repeated command, and other hubs may still lack the lock.
            if self._revokes(action, call) and (elsewhere := notice_of(await self.spread.wait())):
                message = f"{message}; {elsewhere}"
            return error_reply(error.status, error.code, message)
        except BaseException as error:
            # A bug or a cancellation: only the store shows whether the change was made.
            self._end(event, 500, f"ended by {type(error).__name__}", revoked)
            raise
        if isinstance(done, Done) and done.cluster is not None:
            event = replace(event, cluster=AuditCluster(done.cluster.id, done.cluster.name))
        status = done.status if isinstance(done, Done) else 200
        self._end(event, status, done.note, revoked)
        if not isinstance(done, Done):
            assert isinstance(done, Download), "a stream changes nothing"
            # Before any other wait: a caller who leaves meanwhile would leave the chunks open.
            return DownloadReply(caller, done)
        # Not before the end: an operator who leaves meanwhile has made the change.
        elsewhere = ""
        if revoked is not None and revoked.in_memory:
            elsewhere = notice_of(self.spread.others)
        elif action.changes and self.admin.directory.applied.version != before:
            elsewhere = notice_of(await self.spread.wait())
        if revoked is None:
            return json_reply(status, {**done.body, "notice": elsewhere} if elsewhere else done.body)
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

    async def _run(self, administration: Administration, action: Action, call: Call) -> Answer:
        running = action.run(administration, call)
        return running if isinstance(running, Answer) else await running

    def _revokes(self, action: Action, call: Call) -> bool:
        try:
            return action.only_revokes(self.admin, call)
        except InvalidError:
            return False

    async def _keep(self, action: Action, call: Call, event: Event, *, why: str, recorded: bool) -> _Revoked:
        """Put a revocation into the reserve; if that fails, continue without it."""
        revocation = Revocation(event, recorded, action.method, action.path, call)
        try:
            await trio.to_thread.run_sync(self.revocations.keep, revocation, limiter=self._reserve_thread)
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
            self.revocations.settled(revoked.eid, where)

    def refuse(self, request: Request, endpoint: Endpoint, refused: RefusedError) -> Response:
        """Answer a request that was not admitted, and record that."""
        unknown = refused.status == 401
        event = self._event(
            Kind.AUTH_FAILED if unknown else Kind.ADMIN, request, refused.actor, _mode(request)
        )
        audited = _audited(request, None if unknown else endpoint)
        self._end(replace(event, req=audited, decision=Decision("deny")), refused.status, refused.note)
        return refusal(refused)

    def _event(self, kind: Kind, request: Request, actor: Actor, mode: str) -> Event:
        return new_event(
            kind,
            actor,
            org=self.admin.directory.current.org,
            at=self.clock(),
            client=Client(
                request.client.host if request.client is not None else "",
                ", ".join(request.headers.getlist("user-agent")),
                mode,
            ),
        )

    def _end(self, event: Event, status: int, note: str, revoked: _Revoked | None = None) -> None:
        ended = self._ended(event, status, note)
        if revoked is None or revoked.recorded or not revoked.kept:
            self.recorder.complete(ended)
        else:
            self.recorder.keep(ended, partial(self._settled, revoked, Where.TRAIL))

    def _ended(self, event: Event, status: int, note: str) -> Event:
        return event.completed(utc(self.clock()), resp=AuditResponse(status), note=note)


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
            return error_reply(507, "not_recorded", self.explanation)
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
        return json_reply(status, {**done.body, "notice": notice})


async def _read(request: Request, caller: Caller, clock: Callable[[], float]) -> Call:
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > BODY_BYTES_MAX:
                raise InvalidError(f"the request's body exceeds {BODY_BYTES_MAX} bytes: send less at once")
    last = request.headers.get("last-event-id", "")
    if len(last) > LAST_EVENT_ID_CHARACTERS_MAX:
        raise InvalidError(f"Last-Event-ID exceeds {LAST_EVENT_ID_CHARACTERS_MAX} characters")
    return Call(
        path=request.path_params,
        query=dict(request.query_params),
        body=bytes(body),
        operator=caller.actor.name,
        at=clock(),
        role=caller.role,
        last_event_id=last,
        token=caller.actor.id,
        person=caller.person,
    )


def _mode(request: Request) -> str:
    caller: Caller | None = request.scope.get("state", {}).get(CALLER)
    return "admin" if caller is None else caller.mode


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
