"""The parts of the requests and of the preview that held calls use, so that tests can fake them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio

from auth.policy.ask import Ask
from proxy.hub.approvals.preview.shapes import Preview, PreviewRefused
from proxy.hub.approvals.request import NewRequest, Request, State
from proxy.hub.calls.live import LiveCall


class RequestRows(Protocol):
    """The requests of all hubs (proxy.hub.approvals.requests.service.Requests)."""

    async def find(self, agent_id: str, plan: str) -> Request | None: ...
    async def open(self, new: NewRequest, *, eid: str = "") -> Request: ...
    async def use(self, request_id: str) -> bool: ...
    async def give_back(self, request_id: str) -> bool: ...
    async def spend(self, request_id: str) -> None: ...
    async def end(self, request_id: str, state: State, why: str) -> bool: ...
    async def every_open(self) -> Sequence[Request]: ...
    def changed(self, request: Request) -> trio.Event: ...
    def revoked(self, request_id: str) -> bool: ...


class PreviewMaker(Protocol):
    """Makes previews (proxy.hub.approvals.preview.previewer.Previewer)."""

    async def preview(
        self, live: LiveCall, body: bytes, ask: Ask, *, like: str = ""
    ) -> Preview | PreviewRefused: ...
