"""Sign-in, errors and assets of the console's application."""

from __future__ import annotations

from urllib.parse import quote, urlencode

import pytest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from proxy.console.app import FORM_BYTES_MAX, console_app
from proxy.console.base.templating import read_assets
from tests.console.fakes import CSRF, FakeSignIn
from tests.console.markup import faults_of, text_of
from tests.fakes.admin import Clock
from tests.fakes.asgi import Reply, call


async def _no_api(scope: object, receive: object, send: object) -> None:
    raise AssertionError("the API is not asked")


def app_of(sign_in: FakeSignIn) -> ASGIApp:
    return console_app(_no_api, sign_in, "hub.example", Clock())


async def post(app: ASGIApp, target: str, **fields: str) -> Reply:
    return await call(app, "POST", target, chunks=[urlencode(fields).encode()])


@pytest.mark.parametrize("path", ["/", "/calls?agent=x", "/nothing"])
async def test_without_a_session_every_page_leads_to_the_sign_in(path: str) -> None:
    reply = await call(app_of(FakeSignIn(None)), "GET", path)
    assert (reply.status, reply.body) == (303, b"")
    then = "" if path == "/" else f"?next={quote(path, safe='')}"
    assert reply.headers["location"] == f"/signin{then}"


async def test_a_change_without_a_session_leads_to_the_sign_in() -> None:
    reply = await post(app_of(FakeSignIn(None)), "/calls/end", id="x", reason="y")
    assert (reply.status, reply.headers["location"]) == (303, "/signin")


async def test_a_code_signs_in_and_leads_back_to_the_page() -> None:
    app = app_of(FakeSignIn(None))
    assert faults_of((await call(app, "GET", "/signin?next=/calls")).body) == []
    offered = await post(app, "/signin/offer", code="hwo_good")
    assert (offered.status, offered.json) == (200, {"name": "ops", "role": "admin"})
    reply = await post(app, "/signin", code=" hwo_good ", next="/calls?agent=x")
    assert (reply.status, reply.headers["location"]) == (303, "/calls?agent=x")
    assert reply.headers["set-cookie"] == "hawse=x; HttpOnly; Path=/"


@pytest.mark.parametrize(
    "target", ["//evil.example/", "/\\evil.example", "https://evil.example", "evil", "/\nx", ""]
)
async def test_a_sign_in_leads_to_this_console_alone(target: str) -> None:
    reply = await post(app_of(FakeSignIn(None)), "/signin", code="hwo_good", next=target)
    assert reply.headers["location"] == "/"


async def test_a_wrong_code_is_refused_with_what_to_do() -> None:
    app = app_of(FakeSignIn(None))
    for path in ("/signin", "/signin/offer"):
        reply = await post(app, path, code="hwo_bad")
        assert reply.status == 401
        assert b"not valid, or was used already" in reply.body
        assert "set-cookie" not in reply.headers


@pytest.mark.parametrize(
    ("status", "ends"), [(200, True), (401, True), (404, True), (507, True), (500, False), (503, False)]
)
async def test_a_sign_out_ends_the_session_with_the_token_alone(status: int, ends: bool) -> None:
    asked = []

    async def api(scope: Scope, receive: Receive, send: Send) -> None:
        asked.append((scope["method"], scope["path"]))
        body = {"error": {"code": "x", "message": "the hub says why"}} if status >= 400 else {}
        await JSONResponse(body, status)(scope, receive, send)

    app = console_app(api, FakeSignIn(), "hub.example", Clock())
    assert (await post(app, "/signout", csrf="another")).status == 403
    assert asked == []
    reply = await post(app, "/signout", csrf=CSRF)
    assert asked == [("DELETE", "/v1/console/sessions/session-1")]
    if ends:
        assert (reply.status, reply.headers["location"]) == (303, "/signin")
        assert reply.headers["set-cookie"] == FakeSignIn().clear_cookie
    else:
        assert (reply.status, "set-cookie" in reply.headers) == (status, False)
        assert "The hub says why" in text_of(reply.body)


async def test_a_body_that_is_no_form_is_refused() -> None:
    app = app_of(FakeSignIn())
    large = await call(app, "POST", "/calls/end", chunks=[b"x" * FORM_BYTES_MAX, b"x"])
    garbled = await call(app, "POST", "/calls/end", chunks=[b"\xff=1"])
    many = await call(app, "POST", "/calls/end", chunks=[b"&".join([b"a=1"] * 101)])
    assert (large.status, garbled.status, many.status) == (413, 400, 400)


async def test_a_path_without_a_page_is_said_to_be_none() -> None:
    reply = await call(app_of(FakeSignIn()), "GET", "/nothing")
    assert reply.status == 404
    assert "There is no such page" in text_of(reply.body)
    assert reply.headers["cache-control"] == "no-store"


async def test_assets_are_kept_for_ever_under_names_with_their_hash() -> None:
    app = app_of(FakeSignIn(None))
    for asset in read_assets().values():
        plain = await call(app, "GET", asset.path)
        packed = await call(app, "GET", asset.path, headers={"accept-encoding": "gzip, br"})
        assert plain.body == asset.body
        assert (packed.body, packed.headers["content-encoding"]) == (asset.packed, "gzip")
        assert plain.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert (await call(app, "GET", "/static/console.css")).status == 303
