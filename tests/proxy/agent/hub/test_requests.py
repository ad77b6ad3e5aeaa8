from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trustme

from audit.record import Event
from auth.apikey import hash as hash_key
from auth.keys import SigningKey
from proxy.agent.https.connection import https_connection
from proxy.agent.hub.requests import ANSWER_BYTES_MAX, Reach, fetch_reach, fetch_token
from proxy.agent.local.account import Account
from proxy.agent.local.errors import AgentError
from proxy.hub.home.sections.limits import LimitsConfig
from proxy.hub.identity.token import TokenEndpoint
from proxy.hub.store.directory import open_directory
from proxy.hub.store.secrets.signing_keys import SigningKeys
from proxy.hub.store.store import Store
from proxy.message.status import status_response
from tests.fakes.https import Asked, Reply
from tests.fakes.hub import AGENT, FakeHub, fake_hub
from tests.fakes.replays import open_replays
from tests.faults.egress import Egress, open_egress
from tests.proxy.agent.conftest import API_KEY

OWN_KEY = SigningKey.generate()


def test_a_token_is_asked_for_by_form_for_one_cluster(hub: FakeHub, account: Account) -> None:
    token = fetch_token(account, "prod")
    assert (token.text, token.expires_in_s) == ("token-1-prod", 59)
    assert "token-1" not in repr(token)
    (asked,) = hub.asked
    assert (asked.method, asked.path) == ("POST", "/oauth/token")
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    assert asked.form == {
        "grant_type": "client_credentials",
        "audience": "prod",
        "client_id": "robot",
        "client_secret": API_KEY,
    }


def test_the_clusters_are_listed_for_the_key(hub: FakeHub, account: Account) -> None:
    assert fetch_reach(account) == Reach("robot", "acme", ("prod", "dev"))


def reply(status: int, body: bytes, **headers: str) -> Callable[[Asked], Reply]:
    return lambda _: (status, headers, body)


@pytest.mark.parametrize(
    "hosts",
    ['"*.example"', '"k8s.hub.example"', '"*.k8s.hub.example:443"', '"*.k8s.hub.example/x"',
     '"*.K8s.hub.example"', '"*.k8s@evil.example"', '"*..hub.example"', '"*.-a.example"', "7", "[]",
     f'"*.{"a." * 95}example"'],
)  # fmt: skip
def test_hosts_that_no_cluster_can_have_are_refused(hub: FakeHub, account: Account, hosts: str) -> None:
    body = f'{{"agent": "robot", "org": "acme", "clusters": [], "cluster_hosts": {hosts}}}'
    hub.reply = reply(200, body.encode())
    with pytest.raises(AgentError, match="invalid pattern for cluster hosts"):
        fetch_reach(account)


def test_what_is_no_word_is_not_shown(hub: FakeHub, account: Account) -> None:
    said = {
        "agent": "robot", "org": "acme", "hub": "http://x", "credential": "\x1b[2J", "now": "1",
        "teams": [7, "a"],
        "clusters": [{"name": "prod", "state": "a\nb", "may": "x" * 70}, {"name": "dev", "state": "offline"}],
    }  # fmt: skip
    hub.reply = reply(200, json.dumps(said).encode())
    reach = fetch_reach(account)
    assert (reach.hub, reach.key_id, reach.skew_s, reach.teams) == ("", None, None, ("a",))
    assert (reach.states, reach.may) == ({"dev": "offline"}, {})


@pytest.mark.parametrize("now", ["true", "-1", "1e999", "NaN", "-Infinity", "1" + "0" * 400, "1e12"])
def test_a_time_that_no_hub_has_is_not_compared(hub: FakeHub, account: Account, now: str) -> None:
    hub.reply = reply(200, b'{"agent": "robot", "org": "acme", "clusters": [], "now": %b}' % now.encode())
    assert fetch_reach(account).skew_s is None


TOKEN = b'{"access_token":"t","expires_in":%s}'


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (FakeHub.refusal(401, "ask\nthe \x1b[2Joperator"), r"answered 401: ask\\nthe \\x1b\[2Joperator"),
        ((500, {}, b"<html>"), r"answered 500: is it a Hawse hub\?$"),
        ((500, {}, b'{"kind":"Status","message":7}'), r"answered 500: is it a Hawse hub\?$"),
        ((500, {}, status_response(500, "", "a fault\n")[1]), r"answered 500: a fault\\n$"),
        ((413, {}, status_response(413, "", "too large")[1]), "answered 413: too large$"),
        ((403, {}, status_response(403, "", "forbidden")[1]), r"403: forbidden: is it a Hawse hub\?$"),
        ((302, {"location": "https://evil.example/"}, b""), "answered 302"),
        ((200, {}, b"<html>"), "not answer with a JSON object"),
        ((200, {}, b"[" * 100_000), "not answer with a JSON object"),
        ((200, {}, b"x" * (ANSWER_BYTES_MAX + 1)), "more than"),
        ((200, {}, b"{}"), "usable token"),
        ((200, {}, TOKEN % b"0"), "usable token"),
        ((200, {}, TOKEN % b"3600"), "usable token"),
        ((200, {}, TOKEN % b'"60"'), "usable token"),
        ((200, {}, b'{"access_token":"a\\nb","expires_in":60}'), "usable token"),
    ],
)
def test_an_answer_that_is_none_is_one_clear_line(
    hub: FakeHub, account: Account, answer: Reply, message: str
) -> None:
    hub.reply = lambda _: answer
    with pytest.raises(AgentError, match=message) as error:
        fetch_token(account, "prod")
    assert "\n" not in str(error.value)
    assert API_KEY not in str(error.value)
    assert len(hub.asked) == 1


@pytest.mark.parametrize("name", ["$(id)", 'a"b', "a\n", "--server=x", "system", ""])
def test_a_hostile_cluster_name_of_the_hub_is_refused(hub: FakeHub, account: Account, name: str) -> None:
    hub.clusters = ["prod", name]
    with pytest.raises(AgentError, match="an invalid name"):
        fetch_reach(account)


def test_a_list_that_is_none_is_refused(hub: FakeHub, account: Account) -> None:
    for body in (b"{}", b'{"agent":"a","org":"b","clusters":{}}', b'{"agent":"a","org":"b","clusters":[1]}'):
        hub.reply = reply(200, body)
        with pytest.raises(AgentError, match="without a list of clusters"):
            fetch_reach(account)


def test_a_certificate_of_another_ca_is_refused_before_the_key_is_sent(
    hub: FakeHub, account: Account
) -> None:
    with pytest.raises(AgentError, match=r"not trusted.*--ca FILE"):
        fetch_reach(account._replace(ca_pem=None))
    assert hub.asked == []


def test_a_ca_that_did_not_sign_the_hubs_certificate_is_not_asked_for_as_if_none_were_given(
    hub: FakeHub, account: Account
) -> None:
    with fake_hub(API_KEY) as other, pytest.raises(AgentError, match=r"did not sign it\. Check"):
        fetch_reach(account._replace(ca_pem=other.ca_pem))
    assert hub.asked == []


def test_an_intermediate_ca_is_enough_and_no_file_gets_the_sessions_keys(
    account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with fake_hub(API_KEY, ca=trustme.CA().create_child_ca()) as hub:
        assert fetch_reach(account._replace(hub=hub.url, ca_pem=hub.ca_pem)).agent == AGENT
    assert not (tmp_path / "keys").exists()


def test_a_certificate_whose_time_is_over_is_no_question_of_its_ca(account: Account) -> None:
    with (
        fake_hub(API_KEY, ends=datetime(2020, 1, 1, tzinfo=UTC)) as hub,
        pytest.raises(
            AgentError, match=r"has expired\): it must be renewed, unless this machine's clock is wrong$"
        ),
    ):
        fetch_reach(account._replace(hub=hub.url, ca_pem=hub.ca_pem))


def test_a_certificate_of_another_host_is_no_question_of_its_ca(hub: FakeHub, account: Account) -> None:
    called = hub.url.replace("127.0.0.1", "localhost")
    with pytest.raises(AgentError, match=r"mismatch.*\): the URL must name the host as the"):
        fetch_reach(account._replace(hub=called))
    assert hub.asked == []


def test_a_hub_that_is_not_there_is_named(account: Account) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub = f"https://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(AgentError, match=f"cannot reach {hub}: Connection refused$"):
            fetch_reach(account._replace(hub=hub))


def test_a_hub_that_says_nothing_is_given_up(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.agent.https.connection.SOCKET_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(AgentError, match="did not answer"):
            fetch_reach(account._replace(hub=hub))


def test_a_ca_that_is_none_says_to_log_in_again(account: Account) -> None:
    with pytest.raises(AgentError, match="--ca FILE"):
        fetch_reach(account._replace(ca_pem="nonsense"))


HUB_NAME = "hub.example"


@pytest.fixture
def behind(account: Account) -> Iterator[tuple[Account, FakeHub, Egress]]:
    """An account at a hub whose name only a proxy can resolve."""
    with (
        fake_hub(API_KEY, name=HUB_NAME) as hub,
        open_egress({HUB_NAME: "127.0.0.1"}, password="p@ss") as egress,
    ):
        yield account._replace(hub=hub.url, ca_pem=hub.ca_pem), hub, egress


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_a_proxy_leads_to_the_hub(
    behind: tuple[Account, FakeHub, Egress], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    account, hub, egress = behind
    monkeypatch.setenv(name, egress.url())
    assert fetch_token(account, "prod").text == "token-1-prod"
    assert egress.asked == [hub.url.removeprefix("https://")]


def test_a_proxy_leads_to_a_hub_that_is_called_by_its_ipv6_address(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = "fd00::1"
    with (
        fake_hub(API_KEY, name=address) as hub,
        open_egress({f"[{address}]": "127.0.0.1"}, password="p@ss") as egress,
    ):
        authority = f"[{address}]:{hub.url.rpartition(':')[2]}"
        monkeypatch.setenv("HTTPS_PROXY", egress.url())
        login = account._replace(hub=f"https://{authority}", ca_pem=hub.ca_pem)
        assert fetch_token(login, "prod").text == "token-1-prod"
        assert egress.asked == [authority]
        assert [asked.headers["host"] for asked in hub.asked] == [authority]


def test_a_name_that_no_host_can_have_is_an_error_behind_a_proxy_too(
    account: Account, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "hub..example"
    with open_egress({name: "127.0.0.1"}, password="p@ss") as egress:
        monkeypatch.setenv("HTTPS_PROXY", egress.url())
        login = account._replace(hub=f"https://{name}:{hub.url.rpartition(':')[2]}")
        with pytest.raises(
            AgentError, match=r"cannot reach https://hub\.\.example:.* no host can have that name"
        ):
            fetch_token(login, "prod")


def test_a_proxy_that_leads_nowhere_is_named_and_its_password_is_not(
    behind: tuple[Account, FakeHub, Egress], monkeypatch: pytest.MonkeyPatch
) -> None:
    account, hub, egress = behind
    monkeypatch.setenv("HTTPS_PROXY", egress.url("wr0ng"))
    with pytest.raises(
        AgentError, match=rf"cannot reach {hub.url} through the proxy 127.0.0.1:{egress.port}: .*407"
    ) as error:
        fetch_token(account, "prod")
    assert "wr0ng" not in str(error.value)


@pytest.mark.parametrize(
    "no_proxy", [HUB_NAME, ".example", "*", f"other, *.{HUB_NAME.partition('.')[2]}:PORT"]
)
def test_the_proxy_is_passed_by_for_the_names_of_no_proxy(
    behind: tuple[Account, FakeHub, Egress], monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    account, hub, egress = behind
    monkeypatch.setenv("HTTPS_PROXY", egress.url())
    monkeypatch.setenv("NO_PROXY", no_proxy.replace("PORT", hub.url.rpartition(":")[2]))
    # Without the proxy, the name does not resolve.
    with pytest.raises(AgentError, match=f"cannot reach {hub.url}: "):
        fetch_token(account, "prod")
    assert egress.asked == []


@pytest.mark.parametrize(
    ("host", "no_proxy", "through"),
    [
        ("10.1.2.3", "10.0.0.0/8", ""),
        ("10.1.2.3", "192.168.0.0/16, 10.1.0.0/16", ""),
        ("10.1.2.3", "11.0.0.0/8", " through the proxy proxy.example:3128"),
        # To a proxy, these names mean another machine.
        ("127.0.0.1", "", ""),
        ("localhost", "", ""),
    ],
)
def test_networks_of_no_proxy_and_loopback_are_reached_straight(
    monkeypatch: pytest.MonkeyPatch, host: str, no_proxy: str, through: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    connection, words = https_connection(host, 443, ssl.create_default_context())
    assert words == through
    assert (connection.host, connection.proxy is not None) == (host, bool(through))


@pytest.mark.parametrize("proxy", ["socks5://me:s3cret@p:1", "https://me:s3cret@p:1", "http://me:s3cret@"])
def test_a_proxy_of_another_kind_is_refused(
    account: Account, monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(AgentError, match="HTTPS_PROXY") as error:
        fetch_reach(account._replace(hub=f"https://{HUB_NAME}"))
    assert "s3cret" not in str(error.value)


@pytest.fixture
async def endpoint(hub: FakeHub, tmp_path: Path) -> AsyncIterator[TokenEndpoint]:
    """The hub's own endpoint behind the fake's TLS."""
    pepper = b"p" * 32
    key = SigningKey.generate()
    events: list[Event] = []

    def enrol(store: Store) -> None:
        store.add_team("sre")
        store.add_agent(
            "robot", owner="ada", teams=["sre"], key_hash=hash_key(API_KEY, pepper), key_hint=API_KEY[:8]
        )
        store.add_code("robot", "c")
        store.redeem_code("c", OWN_KEY.public)
        store.add_cluster("prod", relay_key=SigningKey.generate().public, teams=["sre"])

    async with open_replays(tmp_path / "seen.db") as replays:
        async with open_directory(
            tmp_path / "hub.db", org="acme", clock=lambda: 1_800_000_000.0
        ) as directory:
            await directory.change(enrol)
            endpoint = TokenEndpoint(
                directory=directory,
                keys=lambda: SigningKeys(key, (key,)),
                pepper=pepper,
                issuer=hub.url,
                record=events.append,
                clock=lambda: 1_800_000_000.0,
                replays=replays,
                limits=LimitsConfig(),
                recording=lambda: True,
                state_of=lambda cluster: "not tried",
            )
            token = trio.lowlevel.current_trio_token()

            def answer(asked: Asked) -> Reply:
                headers = tuple((name.encode(), value.encode()) for name, value in asked.headers.items())
                if asked.path == "/oauth/token":
                    got = trio.from_thread.run(
                        endpoint.answer, asked.body, headers, "192.0.2.1", trio_token=token
                    )
                else:
                    got = trio.from_thread.run_sync(endpoint.clusters, headers, "192.0.2.1", trio_token=token)
                return got.status, {name.decode(): value.decode() for name, value in got.headers}, got.body

            hub.reply = answer
            yield endpoint


async def test_the_hub_itself_and_the_agent_speak_the_same_language(
    endpoint: TokenEndpoint, account: Account
) -> None:
    reach = await trio.to_thread.run_sync(fetch_reach, account)
    assert reach[:5] == ("robot", "acme", ("prod",), 0, None)
    assert (reach.hub, reach.teams) == (account.hub, ("sre",))
    assert (reach.states, reach.may) == ({"prod": "not tried"}, {"prod": "all"})
    assert reach.key_id is not None
    # The hub's clock is many years ahead.
    assert reach.skew_s is not None
    assert abs(reach.skew_s - (time.time() - 1_800_000_000)) < 60
    token = await trio.to_thread.run_sync(fetch_token, account, "prod")
    assert token.text.count(".") == 2
    assert token.expires_in_s == 60
    with pytest.raises(AgentError, match="400: this agent may reach no such cluster"):
        await trio.to_thread.run_sync(fetch_token, account, "other")
    with pytest.raises(AgentError, match=r"401: .*hawse login"):
        await trio.to_thread.run_sync(fetch_token, account._replace(api_key="hws_wrong"), "prod")


async def test_a_key_proves_the_agent_to_the_hub_itself_whatever_the_clock(
    endpoint: TokenEndpoint, account: Account, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = account._replace(api_key=None, private_key_pem=OWN_KEY.to_pem().decode())
    for ahead_s in (0, 3, -30, 30, -600, 600, -86_400, 86_400, 400 * 86_400):
        monkeypatch.setattr("time.time", lambda ahead_s=ahead_s: 1_800_000_000.0 + ahead_s)
        hub.asked.clear()
        token = await trio.to_thread.run_sync(fetch_token, account, "prod")
        right = ahead_s in {0, 3, -30}
        assert (token.ahead_s, hub.token_calls) == ((0, 1) if right else (ahead_s, 2))
