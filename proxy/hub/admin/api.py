"""The admin API: authenticates the caller, and runs the action that the table of actions has for the path.

JSON over HTTP on a separate listener. Every path but /healthz needs the operator's bearer token, or a caller
that the console has authenticated: /metrics, and the actions of proxy.hub.admin.verbs.verb. Each needs a role
(proxy.hub.admin.operators). proxy.hub.admin.perform runs an action.

A refusal is {"error": {"code", "message"}}.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.hub.admin.administration import ACTIONS, Action, Administration
from proxy.hub.admin.metrics.page import page
from proxy.hub.admin.openapi import description
from proxy.hub.admin.operators import Operators
from proxy.hub.admin.perform import EachRead, Performer, Reads, Recorder
from proxy.hub.admin.replies import SECURITY_HEADERS, encoded_reply, error_reply
from proxy.hub.admin.revocations import Revocations
from proxy.hub.admin.streams.sse import EventStreams
from proxy.hub.admin.verbs.callers import RefusedError
from proxy.hub.admin.verbs.verb import METRICS, OPENAPI, Endpoint
from proxy.hub.membership.spread import Spread


def admin_app(
    administration: Administration,
    recorder: Recorder,
    metrics: CollectorRegistry,
    clock: Callable[[], float],
    revocations: Revocations,
    spread: Spread | None = None,
    *,
    reads: Reads | None = None,
    streams: EventStreams | None = None,
) -> Starlette:
    """Build the ASGI application; it needs no lifespan.

    Without `spread` there are no other hubs. Without `reads` each read is an event. Without `streams` they do
    not end when the hub drains.
    """
    performer = Performer(
        administration,
        recorder,
        revocations,
        clock,
        spread or Spread(administration.directory),
        reads or EachRead(recorder),
        streams or EventStreams(),
    )
    operators = Operators(administration.directory, administration.pepper, clock, administration.local_token)
    endpoints = _Endpoints(operators, performer, metrics)
    app = Starlette(
        routes=[
            Route("/healthz", endpoints.healthz, methods=["GET"]),
            Route(METRICS.path, endpoints.metrics_page, methods=[METRICS.method]),
            Route(OPENAPI.path, endpoints.openapi, methods=[OPENAPI.method]),
            *(Route(action.path, endpoints.serve(action), methods=[action.method]) for action in ACTIONS),
        ],
        exception_handlers={HTTPException: _unrouted},
    )
    # A redirect would be an answer without authentication.
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    """Admits each request, and passes it on."""

    def __init__(self, operators: Operators, performer: Performer, metrics: CollectorRegistry) -> None:
        self._operators = operators
        self._performer = performer
        self._metrics = metrics

    async def healthz(self, request: Request) -> Response:
        """Answer that the loop runs, without authentication."""
        return Response(b"ok\n", media_type="text/plain", headers=SECURITY_HEADERS)

    async def metrics_page(self, request: Request) -> Response:
        """Answer a scrape."""
        if refused := self._refused(request, METRICS):
            return refused
        body = await page(self._metrics)
        return Response(body, media_type=CONTENT_TYPE_LATEST, headers=SECURITY_HEADERS)

    async def openapi(self, request: Request) -> Response:
        """Answer the description of this API."""
        version = self._performer.admin.overview.version
        return self._refused(request, OPENAPI) or encoded_reply(200, description(version))

    def _refused(self, request: Request, endpoint: Endpoint) -> Response | None:
        """Return the refusal of a request for an endpoint that is no action; None if it is admitted."""
        try:
            self._operators.admit(request, endpoint)
        except RefusedError as refused:
            return self._performer.refuse(request, endpoint, refused)
        return None

    def serve(self, action: Action) -> Callable[[Request], Awaitable[Response]]:
        """Make the endpoint of one action."""

        async def endpoint(request: Request) -> Response:
            try:
                caller = self._operators.admit(request, action)
            except RefusedError as refused:
                return self._performer.refuse(request, action, refused)
            return await self._performer.perform(action, caller, request)

        return endpoint


async def _unrouted(request: Request, error: Exception) -> Response:
    """Answer requests without a route in the same form as every other refusal."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
    answer = error_reply(error.status_code, code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer
