"""The console's ASGI application: routes to templates. It keeps no state.

Every page needs a session and a role, which its route declares. A change is a POST with the token of the
session's forms (SignIn.refusal); it is made by the API, which checks the role again and records it.
The hub's listener adds the security headers, and serves /v1 (proxy.hub.console).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from urllib.parse import parse_qsl

import attrs
import trio
from jinja2 import Environment
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route as Served
from starlette.types import ASGIApp

from proxy.console.base import notices
from proxy.console.base.api import Api, ApiError, at
from proxy.console.base.routes import SECTIONS, Ask, Page, Redirect, Route
from proxy.console.base.sessions import Person, SignIn, SignInError
from proxy.console.base.templating import Asset, environment, read_assets
from proxy.console.pages import (
    agents,
    audit,
    calls,
    clusters,
    decision,
    event,
    locks,
    overview,
    policies,
    requests,
    simulations,
    teams,
)

ROUTES: Sequence[Route] = (
    *overview.ROUTES,
    *requests.ROUTES,
    *calls.ROUTES,
    *locks.ROUTES,
    *audit.ROUTES,
    *event.ROUTES,
    *decision.ROUTES,
    *agents.ROUTES,
    *clusters.ROUTES,
    *teams.ROUTES,
    *policies.ROUTES,
    *simulations.ROUTES,
)

# The largest form has a pasted policy; the API takes no larger body.
FORM_BYTES_MAX = 256 * 1024
# More would only wait for one another: rendering holds the interpreter's lock.
RENDERED_AT_ONCE = 2
# In a form: the token of the session.
TOKEN_FIELD = "csrf"  # noqa: S105 - the name of a field
NOTICE = "notice"
# An asset's name changes with its content.
_FOREVER = "public, max-age=31536000, immutable"
# Answers to a sign-out. 401, 404: the session has ended before. 507: it has ended, without a record of that.
_ENDED = frozenset({401, 404, 507})
_ADVICE = {
    400: "The form was not sent as the page has it.",
    404: "The address may be old, or mistyped.",
    405: "This address takes another kind of request.",
    413: f"A form is at most {FORM_BYTES_MAX // 1024} KiB.",
}
_TITLES = {
    400: "The request is not valid",
    403: "Your role may not see this",
    404: "There is no such page",
    405: "There is no such page",
    413: "The form is too large",
    409: "This was changed meanwhile",
    422: "The request is not valid",
    503: "The hub cannot answer now",
}


def console_app(api: ASGIApp, sign_in: SignIn, hub: str, clock: Callable[[], float]) -> Starlette:
    """Build the application; it needs no lifespan. `hub` is the name that its pages show."""
    assets = read_assets()
    pages = _Pages(api, sign_in, hub, clock, environment(assets), trio.CapacityLimiter(RENDERED_AT_ONCE))
    app = Starlette(
        routes=[
            *(Served(asset.path, _serve_asset(asset), methods=["GET"]) for asset in assets.values()),
            Served("/signin", pages.show_sign_in, methods=["GET"]),
            Served("/signin", pages.redeem, methods=["POST"]),
            Served("/signin/offer", pages.offer, methods=["POST"]),
            Served("/signout", pages.sign_out, methods=["POST"]),
            *(Served(route.path, pages.serve(route), methods=[route.method]) for route in ROUTES),
        ],
        exception_handlers={HTTPException: pages.unrouted},
    )
    app.router.redirect_slashes = False
    return app


@attrs.frozen
class _Pages:
    api: ASGIApp
    sign_in: SignIn
    hub: str
    clock: Callable[[], float]
    templates: Environment
    renderers: trio.CapacityLimiter

    def serve(self, route: Route) -> Callable[[Request], Awaitable[Response]]:
        """Make the endpoint of a route."""

        async def endpoint(request: Request) -> Response:
            person = self.sign_in.person(request.scope)
            if person is None:
                return self._to_sign_in(request)
            try:
                answer = await self._answer(route, request, person)
            except ApiError as error:
                answer = _refused(error, changing=route.method == "POST")
            if isinstance(answer, Redirect):
                return _redirected(answer, person)
            if isinstance(answer, Page):
                # A refusal reads nothing more.
                waiting = await self._number_waiting(request, person) if answer.status == 200 else None
                return await self._rendered(answer, request, person, route.section, waiting)
            return answer

        return endpoint

    async def _answer(self, route: Route, request: Request, person: Person) -> Page | Redirect | Response:
        if not route.admits(person):
            return self._forbidden(route, person)
        form: dict[str, str] = {}
        if route.method == "POST":
            form = await _form(request)
            if refusal := self.sign_in.refusal(request.scope, person, form.pop(TOKEN_FIELD, "")):
                return _error(403, refusal, title="Nothing was changed")
        api = Api(self.api, self.sign_in.caller(person), request)
        return await route.handler(Ask(request, person, api, self.clock(), form))

    async def _number_waiting(self, request: Request, person: Person) -> int | None:
        """Return how many requests wait for an approval; None if the person may not see them."""
        if not person.may(requests.ROLE):
            return None
        try:
            return await requests.number_waiting(Api(self.api, self.sign_in.caller(person), request))
        except ApiError:
            # The page itself says what the hub cannot answer now.
            return None

    async def show_sign_in(self, request: Request) -> Response:
        """Show the form for a code. The code is in the fragment, which no server and no log sees.

        Also to a person who is signed in: the code may be another role's, and the session another person's.
        """
        return await self._rendered(Page("signin.html", "Sign in", {"fault": ""}), request, None)

    async def offer(self, request: Request) -> Response:
        """Answer whom a code would sign in, for the page before the click."""
        form = await _form(request)
        if refusal := self.sign_in.refusal(request.scope, None, ""):
            return JSONResponse({"fault": refusal}, 403)
        try:
            offer = await self.sign_in.offer(form.get("code", "").strip(), _address(request))
        except SignInError as error:
            return JSONResponse({"fault": str(error)}, error.status)
        return JSONResponse({"name": offer.name, "role": offer.role})

    async def redeem(self, request: Request) -> Response:
        """Use up a code."""
        form = await _form(request)
        fault = self.sign_in.refusal(request.scope, None, "")
        status = 403
        if not fault:
            try:
                agent = request.headers.get("user-agent", "")
                cookie = await self.sign_in.redeem(form.get("code", "").strip(), _address(request), agent)
            except SignInError as error:
                fault, status = str(error), error.status
            else:
                answer = _redirected(Redirect(_local(form.get("next", ""))), None)
                answer.headers.append("set-cookie", cookie)
                return answer
        return await self._rendered(Page("signin.html", "Sign in", {"fault": fault}, status), request, None)

    async def sign_out(self, request: Request) -> Response:
        """End the session."""
        person = self.sign_in.person(request.scope)
        if person is None:
            return self._to_sign_in(request)
        form = await _form(request)
        if refusal := self.sign_in.refusal(request.scope, person, form.get(TOKEN_FIELD, "")):
            page = _error(403, refusal, title="You are still signed in")
            return await self._rendered(page, request, person)
        api = Api(self.api, self.sign_in.caller(person), request)
        try:
            await api.delete(at("/v1/console/sessions/{}", person.session))
        except ApiError as error:
            if error.status not in _ENDED:
                page = _refused(error, changing=True)
                return await self._rendered(page, request, person)
        answer = _redirected(Redirect("/signin"), None)
        answer.headers.append("set-cookie", self.sign_in.clear_cookie)
        return answer

    async def unrouted(self, request: Request, error: Exception) -> Response:
        """Answer a request without a route."""
        assert isinstance(error, HTTPException)
        person = self.sign_in.person(request.scope)
        if person is None:
            return self._to_sign_in(request)
        page = _error(error.status_code, _ADVICE.get(error.status_code, ""))
        answer = await self._rendered(page, request, person)
        answer.headers.update(error.headers or {})
        return answer

    def _forbidden(self, route: Route, person: Person) -> Page:
        holders = [route.role] if route.by_person else self.sign_in.holders(route.role)
        shown = {"role": person.role, "holders": holders}
        return Page("forbidden.html", _TITLES[403], shown, 403)

    def _to_sign_in(self, request: Request) -> Response:
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        query = {"next": target} if request.method == "GET" and target != "/" else {}
        return _redirected(Redirect("/signin", query=query), None)

    async def _rendered(
        self,
        page: Page,
        request: Request,
        person: Person | None,
        section: str = "",
        number_waiting: int | None = None,
    ) -> Response:
        theme = request.cookies.get("hawse-theme", "")
        notice = request.query_params.get(NOTICE, "")
        context = dict(
            title=page.title,
            hub=self.hub,
            person=person,
            csrf=person.csrf if person is not None else "",
            section=section,
            sections=_sections(),
            number_waiting=number_waiting,
            now=self.clock(),
            theme=theme if theme in {"light", "dark"} else "",
            notice=notices.opened(notice, person.csrf) if person is not None and notice else "",
            next=_local(request.query_params.get("next", "")),
            **page.shown,
        )
        # In a thread: a page of 100 rows takes 10 to 50 ms of CPU, and no call moves meanwhile.
        render = partial(self._render, page.template, context)
        body = await trio.to_thread.run_sync(render, limiter=self.renderers)
        answer = Response(body, page.status, media_type="text/html")
        answer.headers["cache-control"] = "no-store"
        return answer

    def _render(self, template: str, context: Mapping[str, object]) -> str:
        return self.templates.get_template(template).render(context)


def _serve_asset(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        headers = {"cache-control": _FOREVER, "vary": "accept-encoding"}
        packed = "gzip" in request.headers.get("accept-encoding", "")
        if packed:
            headers["content-encoding"] = "gzip"
        return Response(asset.packed if packed else asset.body, media_type=asset.type, headers=headers)

    return endpoint


def _address(request: Request) -> str:
    return request.client.host if request.client is not None else ""


def _sections() -> Mapping[str, Sequence[object]]:
    """Return the navigation without the sections that have no page."""
    paths = {route.path for route in ROUTES}
    return {
        heading: [section for section in group if section.path in paths]
        for heading, group in SECTIONS.items()
        if any(section.path in paths for section in group)
    }


def _redirected(to: Redirect, person: Person | None) -> RedirectResponse:
    if to.notice and person is not None:
        to = attrs.evolve(to, query={**to.query, NOTICE: notices.signed(to.notice, person.csrf)})
    answer = RedirectResponse(to.target, 303)
    answer.headers["cache-control"] = "no-store"
    return answer


def _refused(error: ApiError, *, changing: bool) -> Page:
    """Return the page of a refusal of the API, in the API's words."""
    message = str(error)
    title = {404: "Not found", 507: "Done, but not recorded"}.get(error.status, "")
    if changing and error.status < 500:
        title = "Nothing was changed"
    return _error(error.status, f"{message[:1].upper()}{message[1:]}.", title=title)


def _error(status: int, message: str, *, title: str = "") -> Page:
    title = title or _TITLES.get(status, "This did not work")
    return Page("error.html", title, {"status": status, "message": message}, status)


def _local(path: str) -> str:
    r"""Return a path of the console, or its first page: `//host` and `/\host` are other origins."""
    return path if path[:1] == "/" and path[1:2] not in {"/", "\\"} and path.isprintable() else "/"


async def _form(request: Request) -> dict[str, str]:
    """Read the fields of a form; raises HTTPException for a body that is none."""
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > FORM_BYTES_MAX:
                raise HTTPException(413)
    try:
        return dict(parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=100))
    except ValueError as error:
        raise HTTPException(400) from error
