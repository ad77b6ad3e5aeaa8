from __future__ import annotations

import pytest
import sqlalchemy as sa
import trio

from audit.record import Kind, Phase
from auth.apikey import hash as hash_key
from auth.apikey import new_api_key
from proxy.hub.admin.actions.console import ConsoleActions, NewCode
from proxy.hub.admin.verbs.call import Call
from proxy.hub.identity.code_throttle import FAILURES_MAX, FORGIVEN_AFTER_S
from proxy.hub.store import store as store_module
from proxy.hub.store.engines.errors import ConflictError
from proxy.hub.store.entities import IDLE_S, SESSION_S
from proxy.hub.store.migrations import tables as t
from proxy.hub.store.roles import Role
from proxy.hub.store.store import Store
from tests.fakes.admin import PEPPER, Bench, person_of
from tests.proxy.hub.console.browser import Browser

VIEWER = new_api_key(b"v" * 32)
AUDITOR = new_api_key(b"a" * 32)


async def add_token(bench: Bench, token: str, role: Role, *, remote: bool = False) -> None:
    digest = hash_key(token, PEPPER)
    await bench.directory.change(
        lambda store: store.add_admin_token(
            f"a-{role}", digest, role=role, remote=remote, person=person_of(role)
        )
    )


async def test_a_code_signs_one_browser_in_once(bench: Bench) -> None:
    browser = Browser.at(bench)
    assert (await browser.ask("GET", "/")).headers["location"] == "/signin"
    code = await browser.open_code()
    assert (await browser.redeem(code)).headers["location"] == "/"
    assert (await browser.ask("GET", "/")).status == 200
    second = browser.another()
    assert (await second.redeem(code)).status == 401
    assert second.cookie == ""
    assert (await browser.ask("GET", "/")).status == 200


async def test_one_of_two_browsers_with_one_code_is_signed_in(bench: Bench) -> None:
    browser = Browser.at(bench)
    code = await browser.open_code()
    both = [browser.another(), browser.another()]
    async with trio.open_nursery() as nursery:
        for each in both:
            nursery.start_soon(each.redeem, code)
    assert sorted(bool(each.cookie) for each in both) == [False, True]
    assert len(bench.directory.current.console_sessions) == 1


async def test_the_session_has_the_name_and_role_of_the_token(bench: Bench) -> None:
    await add_token(bench, VIEWER, Role.VIEWER)
    browser = Browser.at(bench)
    code = await browser.open_code(VIEWER)
    offer = await browser.ask("POST", "/signin/offer", {"code": code})
    assert offer.json == {"name": "a-viewer", "role": "viewer"}
    # It was shown, and not used up.
    await browser.redeem(code)
    assert (await browser.ask("GET", "/v1/teams")).status == 200
    assert (await browser.ask("GET", "/v1/tokens")).status == 403
    assert (browser.person.name, browser.person.role) == ("a-viewer", "viewer")


async def test_a_code_expires(bench: Bench) -> None:
    browser = Browser.at(bench)
    code = await browser.open_code()
    bench.clock.now += 60
    assert (await browser.redeem(code)).status == 401
    code = await browser.open_code(expires_s=600)
    bench.clock.now += 599
    assert (await browser.redeem(code)).status == 303
    for refused in (9, 601):
        reply = await bench.ask("POST", "/v1/console/codes", {"expires_s": refused})
        assert reply.status == 422


async def test_an_address_with_many_wrong_codes_is_refused_for_a_while(
    bench: Bench, autojump_clock: trio.testing.MockClock
) -> None:
    browser = Browser.at(bench)
    code = await browser.open_code(expires_s=600)
    for _ in range(FAILURES_MAX):
        assert (await browser.redeem(code[:-1])).status == 401
    # A good one too, and the question whom it would sign in.
    assert (await browser.redeem(code)).status == 429
    assert (await browser.ask("POST", "/signin/offer", {"code": code})).status == 429
    await trio.sleep(FORGIVEN_AFTER_S)
    assert (await browser.redeem(code)).status == 303


async def test_a_known_cookie_is_never_kept_by_a_sign_in(bench: Bench) -> None:
    # Session fixation: the cookie that an attacker has planted does not become the victim's session.
    browser = Browser.at(bench)
    planted = f"__Host-hawse={'A' * 43}"
    browser.cookie = planted
    await browser.open()
    assert browser.cookie != planted
    first = browser.cookie
    await browser.open()
    assert browser.cookie not in (planted, first)


async def test_a_session_ends_without_use_and_after_its_longest_time(bench: Bench) -> None:
    browser = Browser.at(bench)
    await browser.open()
    bench.clock.now += IDLE_S - 1
    assert (await browser.ask("GET", "/")).status == 200
    bench.clock.now += IDLE_S - 1
    assert (await browser.ask("GET", "/")).status == 200
    bench.clock.now += IDLE_S
    assert (await browser.ask("GET", "/")).status == 303
    await browser.open()
    for _ in range(int(SESSION_S // 1000)):
        assert (await browser.ask("GET", "/")).status == 200
        bench.clock.now += 1000
    bench.clock.now += SESSION_S % 1000
    assert (await browser.ask("GET", "/")).status == 303


async def test_a_session_that_is_used_at_another_hub_is_not_idle(bench: Bench) -> None:
    here, elsewhere = Browser.at(bench), Browser.at(bench)
    await here.open()
    elsewhere.cookie = here.cookie
    for _ in range(3):
        bench.clock.now += IDLE_S - 60
        assert (await elsewhere.ask("GET", "/")).status == 200
        await elsewhere.sign_in.people.write_uses()
    assert (await here.ask("GET", "/")).status == 200
    bench.clock.now += IDLE_S
    assert (await here.ask("GET", "/")).status == 303


async def test_a_session_ends_with_its_token(bench: Bench) -> None:
    await add_token(bench, VIEWER, Role.VIEWER)
    browser = Browser.at(bench)
    await browser.open(VIEWER)
    assert (await browser.ask("GET", "/")).status == 200
    caller = browser.sign_in.caller(browser.person)
    assert caller.still_valid() is None
    await bench.ok("DELETE", "/v1/tokens/a-viewer")
    assert (await browser.ask("GET", "/")).status == 303
    refused = caller.still_valid()
    assert refused is not None
    assert refused.status == 401


async def test_a_session_ends_when_its_token_expires(bench: Bench) -> None:
    token = (await bench.ok("POST", "/v1/tokens", {"name": "ci", "role": "viewer", "expires_s": 60}))["token"]
    browser = Browser.at(bench)
    await browser.open(token)
    assert (await browser.ask("GET", "/")).status == 200
    caller = browser.sign_in.caller(browser.person)
    bench.clock.now += 60
    assert (await browser.ask("GET", "/")).status == 303
    assert caller.still_valid() is not None
    assert browser.sign_in.people.living() == set()


async def test_a_session_loses_what_its_role_loses(bench: Bench) -> None:
    browser = Browser.at(bench)
    await browser.open()
    await browser.ask("GET", "/")
    caller = browser.sign_in.caller(browser.person)
    (digest,) = bench.directory.current.admin_tokens_by_hash
    # As by a later verb, or by hand in the database.
    await bench.directory.change(lambda store: set_role(store, digest, Role.VIEWER))
    refused = caller.still_valid()
    assert refused is not None
    assert refused.status == 403
    assert (await browser.ask("GET", "/v1/tokens")).status == 403


def set_role(store: Store, digest: str, role: Role) -> None:
    with store._change() as connection:
        tokens = t.admin_tokens
        connection.execute(sa.update(tokens).where(tokens.c.hash == digest).values(role=role))


async def test_a_sign_out_ends_the_session_everywhere(bench: Bench) -> None:
    browser = Browser.at(bench)
    await browser.open()
    stolen = browser.another()
    stolen.cookie = browser.cookie
    assert (await stolen.ask("GET", "/")).status == 200
    reply = await browser.ask("POST", "/signout", {"csrf": stolen.person.csrf})
    assert reply.headers["set-cookie"].startswith("__Host-hawse=; Max-Age=0;")
    assert (await stolen.ask("GET", "/")).status == 303
    ended = bench.recorder.events[-1]
    # The address shows who has ended it.
    assert ended.client is not None
    assert ended.client.ip == "127.0.0.1"
    assert (ended.kind, ended.actor.name, ended.actor.credential) == (
        Kind.ADMIN,
        "local",
        f"console:{stolen.person.session}",
    )


async def test_a_sign_out_ends_the_session_while_the_trail_is_down(bench: Bench) -> None:
    browser = Browser.at(bench)
    await browser.open()
    await browser.ask("GET", "/")
    bench.recorder.down = True
    await browser.ask("POST", "/signout", {"csrf": browser.person.csrf})
    assert (await browser.ask("GET", "/")).status == 303
    # A session does not begin then.
    bench.recorder.down = False
    code = await browser.open_code()
    bench.recorder.down = True
    assert (await browser.another().redeem(code)).status == 503


async def test_the_trail_has_sign_ins_and_refusals_without_a_secret(bench: Bench) -> None:
    browser = Browser.at(bench)
    code = await browser.open_code()
    await browser.redeem(code)
    await browser.ask("GET", "/")
    intent, end = (each for each in bench.recorder.events if each.kind is Kind.CONSOLE_OPENED)
    assert (intent.phase, end.phase) == (Phase.INTENT, Phase.COMPLETE)
    assert (end.actor.name, end.actor.credential) == ("local", f"console:{browser.person.session}")
    assert end.client is not None
    assert (end.client.ip, end.client.mode) == ("127.0.0.1", "console")
    await browser.another().redeem(code)
    refused = bench.recorder.events[-1]
    assert (refused.kind, refused.resp and refused.resp.status) == (Kind.AUTH_FAILED, 401)
    text = repr(bench.recorder.events)
    for secret in (code, browser.cookie.partition("=")[2], browser.person.csrf):
        assert secret not in text


async def test_people_see_and_end_the_sessions_of_their_token_alone(bench: Bench) -> None:
    await add_token(bench, VIEWER, Role.VIEWER)
    await add_token(bench, AUDITOR, Role.AUDITOR)
    browser, other = Browser.at(bench), Browser.at(bench)
    await browser.open()
    await other.open(VIEWER)

    async def seen(token: str) -> dict[str, str]:
        listed = (await bench.ask("GET", "/v1/console/sessions", token=token)).json["sessions"]
        return {row["name"]: row["id"] for row in listed}

    everything = await seen(AUDITOR)
    assert set(everything) == {"local", "a-viewer"}
    assert set(await seen(VIEWER)) == {"a-viewer"}
    for token, name, status in (
        (VIEWER, "local", 404),
        (AUDITOR, "a-viewer", 404),
        (VIEWER, "a-viewer", 200),
    ):
        target = f"/v1/console/sessions/{everything[name]}"
        assert (await bench.ask("DELETE", target, token=token)).status == status
    assert (await other.ask("GET", "/")).status == 303
    assert (await browser.ask("GET", "/")).status == 200
    await bench.ok("DELETE", f"/v1/console/sessions/{everything['local']}")
    assert (await browser.ask("GET", "/")).status == 303


async def test_a_token_has_some_codes_and_sessions_and_the_oldest_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CODES_PER_TOKEN_MAX", 2)
    monkeypatch.setattr(store_module, "SESSIONS_PER_TOKEN_MAX", 2)
    browser = Browser.at(bench)
    codes = []
    for _ in range(3):
        codes.append(await browser.open_code())
        bench.clock.now += 1
    assert (await browser.redeem(codes[0])).status == 401
    assert (await browser.redeem(codes[1])).status == 303
    for _ in range(2):
        bench.clock.now += 1
        await browser.another().open()
    assert len(bench.directory.current.console_sessions) == 2
    assert (await browser.ask("GET", "/")).status == 303


async def test_a_hub_that_cannot_confirm_its_state_ends_what_a_session_has_open(bench: Bench) -> None:
    browser = Browser.at(bench)
    await browser.open()
    await browser.ask("GET", "/")
    caller = browser.sign_in.caller(browser.person)
    assert caller.still_valid() is None
    bench.directory.age.withhold("the database has lost changes")
    refused = caller.still_valid()
    assert refused is not None
    assert (refused.status, refused.code) == (503, "unconfirmed")


async def test_a_hub_without_a_console_makes_no_code(bench: Bench) -> None:
    alone = ConsoleActions(bench.directory, PEPPER, bench.clock, "", lambda: None)
    with pytest.raises(ConflictError, match=r"has no console: set console\.listen"):
        await alone.open(NewCode(), Call({}, {}, b""))
