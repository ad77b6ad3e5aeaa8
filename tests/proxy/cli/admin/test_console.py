from __future__ import annotations

from functools import partial

from auth.apikey import hash as hash_key
from proxy.hub.store.store import Store
from tests.proxy.cli.admin.conftest import Hub

URL = "https://console.example/signin#code="


async def sign_in(hub: Hub, url: str, session_id: str) -> None:
    """Redeem a code, as the console does."""
    digest = hash_key(url.removeprefix(URL), hub.data.pepper())
    redeem = partial(
        Store.redeem_console_code,
        code_hash=digest,
        session_hash=session_id,
        session_id=session_id,
        ip="192.0.2.7",
        user_agent="Firefox",
    )
    await hub.directory.change(redeem)


async def test_a_url_is_alone_on_standard_output(hub: Hub) -> None:
    done = await hub.ok("console", "open", "--expires", "10m")
    (url,) = done.stdout.splitlines()
    assert url.startswith(f"{URL}hwo_")
    assert "signs in as admin, once, until " in done.stderr
    # The hub's certificate is from its own CA.
    assert "hawse admin hub ca > hub-ca.pem" in done.stderr
    assert "hwo_" not in done.stderr
    assert (await hub.json("console", "open"))["role"] == "admin"
    assert "a code lasts 10 to 600 s, not 660 s" in await hub.fails("console", "open", "--expires", "11m")


async def test_sessions_are_listed_and_ended(hub: Hub) -> None:
    assert (await hub.ok("console", "list")).stderr == "no sessions: hawse admin console open\n"
    for session_id in ("one", "two", "three"):
        await sign_in(hub, (await hub.ok("console", "open")).stdout.strip(), session_id)
    heading, first, *rest = (await hub.ok("console", "list")).stdout.splitlines()
    assert heading.split() == ["ID", "NAME", "ROLE", "ADDRESS", "BEGAN", "USED", "BROWSER"]
    assert first.split()[0] == "one"
    assert "192.0.2.7" in first
    assert len(rest) == 2
    name = (await hub.json("console", "list"))[0]["name"]
    assert (await hub.ok("console", "end", "one")).stderr == f"ended the session of {name}\n"
    assert "no such session" in await hub.fails("console", "end", "one")
    await hub.fails("console", "end", code=2)
    await hub.fails("console", "end", "two", "--all", code=2)
    assert (await hub.ok("console", "end", "--all")).stderr.count("ended the session of") == 2
    assert hub.directory.current.console_sessions == {}


async def test_a_token_for_the_consoles_listener_says_so(hub: Hub) -> None:
    await hub.ok("token", "add", "here", "--role", "viewer")
    await hub.ok("token", "add", "there", "--role", "viewer", "--remote")
    shown = [(await hub.ok("token", "show", name)).stdout for name in ("here", "there")]
    assert ["console.listen" in text for text in shown] == [False, True]
    assert [row["remote"] for row in await hub.json("token", "list")] == [False, False, True]
