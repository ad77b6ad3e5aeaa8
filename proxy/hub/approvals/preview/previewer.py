"""Finds out what an asked call would do, by requests of the hub under the agent's name.

    create, update, patch     the object as it is, and the results of two dry runs
    delete                    the object, and what belongs to it
    deletecollection          the uids of the objects
    exec, attach, port-forward, eviction     the pod and its images
    a read                    nothing

The difference is the effect. Where an API may write on a dry run, none is made, and that fact is the effect.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeAlias

import attrs
import trio

from auth.policy.ask import Ask
from auth.requestinfo import RequestInfo
from proxy.exchange.next_pass import NextPass
from proxy.hub.approvals.preview import probes, words
from proxy.hub.approvals.preview.asker import (
    AgentSlots,
    Answer,
    Asker,
    NotAnsweredError,
    NotMadeError,
    RefusedError,
)
from proxy.hub.approvals.preview.bodies import Body
from proxy.hub.approvals.preview.effect import OBJECTS_MAX, SALT_BYTES, Effect, effect_fits
from proxy.hub.approvals.preview.findings import (
    NO_OBJECT,
    NOT_HONOURED,
    Findings,
    object_of,
    unsupported_webhook,
)
from proxy.hub.approvals.preview.flags import orphans
from proxy.hub.approvals.preview.probes import Probe
from proxy.hub.approvals.preview.shapes import Preview, PreviewRefused, refusal_of
from proxy.hub.calls.calls import Calls
from proxy.hub.calls.live import LiveCall

# The whole preview: one round of requests, and for a deletion two. The agent waits.
PREVIEW_S: Final = 15.0
# Previews at a time. Each has three answers of 1 MiB at most, so a hub's have 100 MiB. The objects in them
# take more, and are compared one after the other. An agent of a slow cluster must not take all slots.
PREVIEWS_MAX: Final = 32
PREVIEWS_PER_AGENT: Final = 2
# Larger texts are compared in a thread, so that other calls go on.
INLINE_BYTES_MAX: Final = 64 * 1024

_TRIED: Final = frozenset({"create", "update", "patch"})
_REACHED: Final = frozenset({"exec", "attach", "portforward", "eviction"})
# With these, the API server would refuse the call as well, so no request is opened.
_AS_THE_CALL: Final = frozenset({400, 403, 404, 405, 406, 409, 410, 413, 415, 422})

Result: TypeAlias = "Answer | NotMadeError | NotAnsweredError"


@attrs.define(eq=False)
class Previewer:
    """Makes the previews of a hub."""

    calls: Calls
    asker: Asker = attrs.field(init=False)
    _slots: trio.Semaphore = attrs.field(init=False, factory=partial(trio.Semaphore, PREVIEWS_MAX))
    _agents: AgentSlots = attrs.field(init=False, factory=partial(AgentSlots, PREVIEWS_PER_AGENT))

    @asker.default
    def _asker_of_these(self) -> Asker:
        return Asker(self.calls)

    async def preview(
        self, live: LiveCall, body: bytes, ask: Ask, *, like: str = ""
    ) -> Preview | PreviewRefused:
        """Return what the call would do, or the agent's answer.

        `like` is the effect of an earlier preview of the same call, to compare the two (`effect_fits`). A
        preview that fails for a while (a timeout, a relay that is away) is then refused with 503 instead of
        being another effect.

        Takes PREVIEW_S at most. The caller's scope cancels it when the call is ended or its client leaves
        (`LiveCall.interruptible`). Its streams are reset then, and its events say so. Raises nothing else.
        """
        earlier = Effect.parse(like)
        salt = os.urandom(SALT_BYTES) if earlier is None else earlier.salt
        failures: list[str] = []
        with trio.move_on_after(PREVIEW_S):
            async with self._agents.slot(live.call.agent.id), self._slots, trio.open_nursery() as nursery:
                passes = NextPass()
                nursery.start_soon(passes.run)
                run = _PreviewRun(self.asker, live, body, ask, salt, passes, failures)
                try:
                    made: Preview | PreviewRefused = await run.made()
                except RefusedError as error:
                    made = error.refused
                nursery.cancel_scope.cancel()
            if failures and isinstance(made, Preview) and like and not effect_fits(like, made.effect):
                return PreviewRefused(503, f"what the call would do cannot be checked now: {failures[0]}")
            return made
        return PreviewRefused(503, f"what the call would do was not found out within {PREVIEW_S:.0f} s")


@attrs.define(eq=False)
class _PreviewRun:
    """One preview that is being made."""

    asker: Asker
    live: LiveCall
    data: bytes
    ask: Ask
    salt: bytes
    passes: NextPass
    failures: list[str]
    """Why there was no answer. Another preview may have one."""

    async def made(self) -> Preview:
        """Return the preview; raises RefusedError."""
        info = self.live.call.info
        if (info.group, info.resource) == ("", "pods") and info.subresource in _REACHED:
            return await self._reached(info)
        if not (info.is_write or info.upgrade):
            return await self._found(Findings.read)
        match info.verb, info.subresource:
            case "delete", "":
                return await self._deleted(info)
            case "deletecollection", "":
                return await self._deleted_many(info)
            case _:
                return await self._tried(info)

    async def _found(self, look: Callable[[Findings], Preview], *texts: bytes) -> Preview:
        """Return what is found in these texts and the body. Of several previews, one parses its objects."""
        info = self.live.call.info

        def found() -> Preview:
            return look(Findings(info, self.ask, Body.of(self.data), self.salt))

        if sum(map(len, (self.data, *texts))) <= INLINE_BYTES_MAX:
            return found()
        return await trio.to_thread.run_sync(found, limiter=self.asker.threads)

    # -- the kinds of calls

    async def _tried(self, info: RequestInfo) -> Preview:
        """Return the preview of a write, by two dry runs if they are trusted."""
        dry = probes.dry_run_of(info, self.ask) if info.verb in _TRIED else None
        if dry is None:
            return await self._not_tried(NOT_HONOURED)
        read = probes.read_of(info, info.subresource) if info.verb != "create" else None
        before, first, second = await self._all(read, dry, dry)
        why = ""
        for tried in (first, second):
            if isinstance(tried, Answer) and tried.status >= 300:
                why = why or unsupported_webhook(tried.body)
                if not why and tried.status in _AS_THE_CALL:
                    raise RefusedError(refusal_of(tried.status, tried.body))
            why = why or self._failure(tried)
        if why:
            return await self._not_tried(f"not tried out: {why}")
        if before is not None and _status_of(before) not in {200, 404}:
            return await self._not_tried(f"the object cannot be shown as it is now: {self._failure(before)}")
        texts = _body_of(before) if _status_of(before) == 200 else b"", _body_of(first), _body_of(second)
        return await self._found(lambda found: _compared(found, *texts), *texts)

    async def _not_tried(self, why: str) -> Preview:
        return await self._found(lambda found: found.not_tried(why))

    async def _deleted(self, info: RequestInfo) -> Preview:
        """Return the preview of a deletion of one object."""
        text, why = await self._read(info)
        if why:
            return await self._found(lambda found: found.deleted_unseen(f"the object cannot be shown: {why}"))
        listed, notes = await self._dependants(info)
        return await self._found(lambda found: _deletion(found, text, listed, notes), text, *listed.values())

    async def _dependants(self, info: RequestInfo) -> tuple[dict[str, bytes], list[str]]:
        """Return the lists of what may belong to an object, by resource, and notes on missing ones."""
        kinds = () if orphans(info, Body.of(self.data)) else words.made_for(info)
        results = await self._all(
            *(probes.dependants_of(info.namespace, *kind, words.DEPENDANTS_MAX) for kind in kinds),
            needed=False,
        )
        listed, notes = {}, []
        for (_, resource), result in zip(kinds, results, strict=True):
            if _status_of(result) == 200:
                listed[resource] = _body_of(result)
            else:
                notes.append(f"{resource} that may belong to it are not counted: {_why(result)}")
        return listed, notes

    async def _deleted_many(self, info: RequestInfo) -> Preview:
        """Return the preview of a deletion of many objects."""
        [read] = await self._all(probes.list_of(info, OBJECTS_MAX))
        if isinstance(read, NotAnsweredError) and read.too_long:
            return await self._found(Findings.too_many)
        if _status_of(read) != 200:
            why = f"the objects cannot be listed: {self._failure(read)}"
            return await self._found(lambda found: found.deleted_unseen(why))
        text = _body_of(read)
        return await self._found(lambda found: _collection(found, text), text)

    async def _reached(self, info: RequestInfo) -> Preview:
        """Return the preview of a call that acts on a running pod."""
        text, why = await self._read(info)
        if why:
            return await self._found(lambda found: found.reached_unseen(f"the pod cannot be shown: {why}"))
        return await self._found(lambda found: _pod(found, text), text)

    # -- the requests

    async def _all(self, *asked: Probe | None, needed: bool = True) -> list[Result | None]:
        """Return the results of requests that are made at the same time.

        Raises RefusedError. If they are not `needed`, a refusal is a result as well.
        """
        results: list[Result | None] = [None] * len(asked)
        refused: list[RefusedError] = []

        async def make(number: int, probe: Probe, scope: trio.CancelScope) -> None:
            try:
                results[number] = await self.asker.ask(self.live, probe, self.data, self.passes)
            except (NotMadeError, NotAnsweredError) as error:
                results[number] = error
            except RefusedError as error:
                if needed:
                    refused.append(error)
                    scope.cancel()
                else:
                    results[number] = NotMadeError(error.refused.message)

        async with trio.open_nursery() as nursery:
            for number, probe in enumerate(asked):
                if probe is not None:
                    nursery.start_soon(make, number, probe, nursery.cancel_scope)
        if refused:
            raise refused[0]
        return results

    async def _read(self, info: RequestInfo) -> tuple[bytes, str]:
        """Return the object that a call is about, and why it is unknown. Raises RefusedError without one."""
        [read] = await self._all(probes.read_of(info, ""))
        if _status_of(read) == 404:
            raise RefusedError(refusal_of(404, _body_of(read)))
        return _body_of(read), self._failure(read)

    def _failure(self, result: Result | None) -> str:
        """Return why a result has no object, "" if it has one. Notes a failure that may not last."""
        why = _why(result)
        if isinstance(result, NotAnsweredError) or _status_of(result) in {429, *range(500, 600)}:
            self.failures.append(why)
        return why


def _compared(found: Findings, before: bytes, first: bytes, second: bytes) -> Preview:
    """Return the preview of a write, of the object (empty if there is none) and two dry runs."""
    present = object_of(before) if before else None
    if before and present is None:
        return found.not_tried(NO_OBJECT)
    after = object_of(first)
    return found.tried(present, after, after if first == second else object_of(second))


def _deletion(found: Findings, text: bytes, listed: Mapping[str, bytes], notes: list[str]) -> Preview:
    value = object_of(text)
    if value is None:
        return found.deleted_unseen(f"the object cannot be shown: {NO_OBJECT}")
    return found.deleted(value, [(name, object_of(each)) for name, each in listed.items()], *notes)


def _collection(found: Findings, text: bytes) -> Preview:
    value = object_of(text)
    return found.deleted_unseen(NO_OBJECT) if value is None else found.deleted_many(value)


def _pod(found: Findings, text: bytes) -> Preview:
    value = object_of(text)
    return (
        found.reached_unseen(f"the pod cannot be shown: {NO_OBJECT}")
        if value is None
        else found.reached(value)
    )


def _status_of(result: Result | None) -> int:
    return result.status if isinstance(result, Answer) else 0


def _body_of(result: Result | None) -> bytes:
    return result.body if isinstance(result, Answer) else b""


def _why(result: Result | None) -> str:
    """Return why a result has no object; "" if it has one."""
    if result is None:
        return "there is no request for it"
    if not isinstance(result, Answer):
        return str(result)
    if result.status == 403:
        return "the agent may not read it (403)"
    return "" if result.status < 300 else f"the API server answered {result.status}"
