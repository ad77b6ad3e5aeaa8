from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from audit.record import Event
from auth.apikey import hash as hash_key
from auth.keys import SigningKey
from proxy.agent.account import Account
from proxy.agent.errors import AgentError
from proxy.agent.hub import ANSWER_BYTES_MAX, fetch_reach, fetch_token
from proxy.hub.datadir import SigningKeys
from proxy.hub.directory import open_directory
from proxy.hub.seenstore import SeenStore
from proxy.hub.store import Store
from proxy.hub.token import TokenEndpoint
from tests.fakes.hub import Asked, FakeHub, Reply
from tests.proxy.agent.conftest import API_KEY


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


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
    assert fetch_reach(account) == ("robot", "acme", ("prod", "dev"))


def reply(status: int, body: bytes, **headers: str) -> Callable[[Asked], Reply]:
    return lambda _: (status, headers, body)


TOKEN = b'{"access_token":"t","expires_in":%s}'


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (FakeHub.refusal(401, "ask\nthe \x1b[2Joperator"), r"answered 401: ask\\nthe \\x1b\[2Joperator"),
        ((500, {}, b"<html>"), "answered 500$"),
        ((302, {"location": "https://evil.example/"}, b""), "answered 302"),
        ((200, {}, b"<html>"), "no JSON object"),
        ((200, {}, b"[" * 100_000), "no JSON object"),
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
    with pytest.raises(AgentError, match="is refused"):
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


def test_a_hub_that_is_not_there_is_named(account: Account) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub = f"https://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(AgentError, match=f"cannot reach {hub}"):
            fetch_reach(account._replace(hub=hub))


def test_a_hub_that_says_nothing_is_given_up(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.agent.hub.SOCKET_TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hub = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(AgentError, match="did not answer"):
            fetch_reach(account._replace(hub=hub))


def test_a_ca_that_is_none_says_to_log_in_again(account: Account) -> None:
    with pytest.raises(AgentError, match="--ca FILE"):
        fetch_reach(account._replace(ca_pem="nonsense"))


def test_a_proxy_is_used_and_sees_no_key(
    hub: FakeHub, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client, socket.create_connection(("127.0.0.1", int(hub.url.rpartition(":")[2]))) as upstream:
                seen.append(client.recv(65536))
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=pump, args=(upstream, client))
                back.start()
                while data := client.recv(65536):
                    seen.append(data)
                    upstream.sendall(data)
                back.join()

        def pump(source: socket.socket, sink: socket.socket) -> None:
            while data := source.recv(65536):
                sink.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@127.0.0.1:{listener.getsockname()[1]}")
        assert fetch_token(account, "prod").text == "token-1-prod"
        thread.join()
    assert seen[0].startswith(b"CONNECT 127.0.0.1:")
    assert b"Basic bWU6cEBzcw==" in seen[0]  # me:p@ss
    assert API_KEY.encode() not in b"".join(seen)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert fetch_token(account, "prod").text == "token-2-prod"


def test_a_proxy_of_another_kind_is_refused(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:1")
    with pytest.raises(AgentError, match="HTTPS_PROXY"):
        fetch_reach(account)


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
        store.add_cluster("prod", relay_key=SigningKey.generate().public, teams=["sre"])

    async with open_directory(tmp_path / "hub.db", org="acme", clock=lambda: 1_800_000_000.0) as directory:
        await directory.change(enrol)
        endpoint = TokenEndpoint(
            directory=directory,
            keys=lambda: SigningKeys(key, (key,)),
            pepper=pepper,
            issuer="https://hub.example",
            record=events.append,
            clock=lambda: 1_800_000_000.0,
            seen=SeenStore(tmp_path / "seen.db"),
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
    assert reach == ("robot", "acme", ("prod",))
    token = await trio.to_thread.run_sync(fetch_token, account, "prod")
    assert token.text.count(".") == 2
    assert token.expires_in_s == 60
    with pytest.raises(AgentError, match="400: this agent may reach no such cluster"):
        await trio.to_thread.run_sync(fetch_token, account, "other")
    with pytest.raises(AgentError, match=r"401: .*hawse login"):
        await trio.to_thread.run_sync(fetch_token, account._replace(api_key="hws_wrong"), "prod")
