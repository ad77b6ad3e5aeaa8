from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest

from auth.apikey import new_code
from auth.hubtime import hub_time, seconds_of
from auth.keys import SigningKey
from proxy.agent.hub.requests import fetch_reach, fetch_token
from proxy.agent.local.account import Account, find_account, load_accounts
from proxy.agent.local.errors import AgentError
from proxy.agent.local.pending import pending_key
from proxy.agent.login import enrol, log_in, note_reach, read_ca
from tests.fakes.https import Asked, Reply
from tests.fakes.hub import AGENT, PEPPER, FakeHub, fake_hub
from tests.proxy.agent.conftest import API_KEY, Home

CODE = new_code(b"c" * 20)


def test_a_key_that_the_hub_takes_is_stored_under_its_agent(home: Home, hub: FakeHub) -> None:
    account, reach, path = log_in(home.environment, hub.url + "/", f"{API_KEY}\n", hub.ca_pem)
    assert reach.clusters == ("prod", "dev")
    assert (account.hub, account.agent, account.api_key) == (hub.url, AGENT, API_KEY)
    assert find_account(home.environment, None) == account
    assert Path(path).is_file()


def test_each_way_to_log_in_keeps_what_the_hub_says_of_its_clusters_hosts(home: Home, hub: FakeHub) -> None:
    hub.cluster_hosts = "*.k8s.hub.example"
    log_in(home.environment, hub.url, API_KEY, hub.ca_pem)
    assert find_account(home.environment, None).cluster_hosts == "*.k8s.hub.example"
    hub.cluster_hosts, hub.code = "*.other.example", CODE
    account, _, _ = enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert find_account(home.environment, None) == account
    assert account.cluster_hosts == "*.other.example"
    hub.cluster_hosts = None
    log_in(home.environment, hub.url, API_KEY, hub.ca_pem)
    assert find_account(home.environment, None).cluster_hosts is None


def test_a_login_that_is_made_while_the_hub_is_asked_for_its_hosts_keeps_its_key(
    home: Home, hub: FakeHub
) -> None:
    before, _, _ = log_in(home.environment, hub.url, API_KEY, hub.ca_pem)
    hub.cluster_hosts = "*.k8s.hub.example"
    reach = fetch_reach(before)
    hub.code = CODE
    after, _, _ = enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert note_reach(home.environment, before, reach).cluster_hosts == "*.k8s.hub.example"
    assert find_account(home.environment, None) == after
    # For its own login it stores them.
    note_reach(home.environment, after, reach._replace(cluster_hosts="*.other.example"))
    assert find_account(home.environment, None) == after._replace(cluster_hosts="*.other.example")


def test_each_login_is_told_from_the_one_before(home: Home, hub: FakeHub) -> None:
    first, _, _ = log_in(home.environment, hub.url, API_KEY, hub.ca_pem)
    second, _, _ = log_in(home.environment, hub.url, API_KEY, hub.ca_pem)
    assert first.serial != second.serial


@pytest.mark.parametrize("key", ["", "password", API_KEY[:-1], API_KEY[:-1] + "!", f"{API_KEY} {API_KEY}"])
def test_what_is_no_key_is_sent_to_nobody(home: Home, hub: FakeHub, key: str) -> None:
    with pytest.raises(AgentError, match="not an API key") as error:
        log_in(home.environment, hub.url, key, hub.ca_pem)
    assert hub.asked == []
    assert home.files() == []
    assert not key or key not in str(error.value)


def test_a_key_that_the_hub_refuses_is_not_stored(home: Home, hub: FakeHub) -> None:
    hub.api_key = "another"
    with pytest.raises(AgentError, match="401: the API key is not accepted"):
        log_in(home.environment, hub.url, API_KEY, hub.ca_pem)
    assert home.files() == []


def test_a_ca_file_is_read_and_what_is_none_is_named(tmp_path: Path, hub: FakeHub) -> None:
    path = tmp_path / "ca.pem"
    path.write_text(hub.ca_pem)
    assert read_ca(str(path)) == hub.ca_pem
    # System bundles name each CA in its own language.
    path.write_text(f"# Főtanúsítvány\n{hub.ca_pem}")
    assert read_ca(str(path)).endswith(hub.ca_pem)
    for content, fault in (
        (b"nonsense", "no certificate in PEM"),
        (b"", "no certificate in PEM"),
        (b"\xff", "no certificate in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nx", "a certificate that is damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(AgentError) as refused:
            read_ca(str(path))
        assert str(refused.value) == (
            f"--ca: {path} holds {fault}: name the CA file of the hub's certificate"
        )
    with pytest.raises(AgentError, match=r"^--ca: cannot read .*missing: No such file"):
        read_ca(str(tmp_path / "missing"))


def test_a_key_is_made_here_and_only_its_public_half_leaves(home: Home, hub: FakeHub) -> None:
    hub.code = CODE
    account, reach, path = enrol(home.environment, hub.url, f"{CODE}\n", hub.ca_pem)
    assert (account.agent, account.api_key, reach.clusters) == (AGENT, None, ("prod", "dev"))
    assert find_account(home.environment, None) == account
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    assert account.private_key_pem is not None
    key = SigningKey.from_pem(account.private_key_pem.encode())
    assert hub.keys == [key.public]
    secret = key.key.private_bytes_raw()
    for asked in hub.asked:
        for form in (
            secret,
            secret.hex().encode(),
            base64.b64encode(secret),
            base64.urlsafe_b64encode(secret),
        ):
            assert form.rstrip(b"=") not in asked.body
        assert b"PRIVATE" not in asked.body
    assert "PRIVATE" not in repr(account)


def test_a_key_proves_the_agent_anew_each_time(home: Home, hub: FakeHub) -> None:
    hub.code = CODE
    account, _, _ = enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert [fetch_token(account, "prod").text for _ in range(2)] == ["token-2-prod", "token-3-prod"]
    assert len(set(hub.jtis)) == 3
    assert set(hub.hub_times) == {""}
    hub.keys.clear()
    with pytest.raises(AgentError, match="401"):
        fetch_token(account, "prod")


@pytest.mark.parametrize("ahead_s", [-86_400, -30, 90, 86_400])
def test_a_clock_that_is_off_costs_a_second_request_and_nothing_else(
    home: Home, hub: FakeHub, ahead_s: float
) -> None:
    hub.code, hub.ahead_s = CODE, ahead_s
    account, reach, _ = enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert [asked.path for asked in hub.asked] == ["/v1/enrol"] * 2 + ["/oauth/token"] * 2 + ["/v1/clusters"]
    assert abs(reach.ahead_s + ahead_s) <= 1
    assert fetch_token(account, "prod").text == "token-4-prod"
    # Without this check, an attacker who invents the time could use the signatures later.
    assert all(map(seconds_of, hub.hub_times))
    assert len(hub.hub_times) == 3


def refused_for_its_time(**more: str) -> Reply:
    return FakeHub.refusal(401, "the token is from 90 s in the future", **more)


@pytest.mark.parametrize(
    ("reply", "requests"),
    [
        (refused_for_its_time(hub_time=hub_time(PEPPER, 1_800_000_000)), 2),
        (refused_for_its_time(), 1),
        (refused_for_its_time(hub_time="1800000000"), 1),
        (refused_for_its_time(hub_time="soon"), 1),
        (FakeHub.json(401, {"hub_time": 1_800_000_000}), 1),
        (FakeHub.json(401, {"hub_time": None}), 1),
        (FakeHub.json(401, []), 1),
        (FakeHub.json(401, hub_time(PEPPER, 0)), 1),
    ],
)
def test_a_second_proof_is_the_last_and_for_a_hub_that_tells_its_time(
    home: Home, hub: FakeHub, reply: Reply, requests: int
) -> None:
    hub.code = CODE
    account, _, _ = enrol(home.environment, hub.url, CODE, hub.ca_pem)
    hub.reply = lambda _: reply
    hub.asked.clear()
    with pytest.raises(AgentError, match="answered 401"):
        fetch_token(account, "prod")
    assert hub.token_calls == requests


def test_what_is_signed_elsewhere_is_not_sent_twice(home: Home, hub: FakeHub, account: Account) -> None:
    platform = home.path / "token"
    platform.write_text("a.b.c")
    hub.reply = lambda _: refused_for_its_time(hub_time=hub_time(PEPPER, 1_800_000_000))
    for login in (account, account._replace(api_key=None, platform=f"file:{platform}")):
        hub.asked.clear()
        with pytest.raises(AgentError, match="90 s in the future"):
            fetch_token(login, "prod")
        assert hub.token_calls == 1


@pytest.mark.parametrize("before", [False, True])
def test_a_code_that_is_refused_leaves_what_was_there(home: Home, hub: FakeHub, before: bool) -> None:
    if before:
        log_in(home.environment, hub.url, API_KEY, hub.ca_pem)
    accounts, files = load_accounts(home.environment), home.files()
    with pytest.raises(AgentError, match="401") as error:
        enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert CODE not in str(error.value)
    assert load_accounts(home.environment) == accounts
    # Nor is the key that was made for it.
    assert home.files() == files


@pytest.mark.parametrize(
    "reply",
    [
        FakeHub.json(503, {"error": "temporarily_unavailable", "error_description": "the trail is full"}),
        (502, {}, b"<html>bad gateway</html>"),
        (401, {}, b"<html>who are you?</html>"),
    ],
)
def test_an_answer_that_is_not_the_hubs_last_word_leaves_the_key(
    home: Home, hub: FakeHub, reply: Reply
) -> None:
    hub.reply = lambda _: reply
    key = pending_key(home.environment, CODE)
    with pytest.raises(AgentError, match=f"answered {reply[0]}"):
        enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert pending_key(home.environment, CODE).kid == key.kid


@pytest.mark.parametrize("path", ["/v1/enrol", "/oauth/token", "/v1/clusters"])
def test_an_answer_that_was_lost_is_had_by_the_same_code(home: Home, hub: FakeHub, path: str) -> None:
    log_in(home.environment, hub.url, API_KEY, hub.ca_pem)
    before = find_account(home.environment, None)
    hub.code = CODE

    def lose(asked: Asked) -> Reply:
        hub.reply = None
        answer = hub.answer(asked)
        hub.reply = lose
        if asked.path == path:
            raise ConnectionAbortedError
        return answer

    hub.reply = lose
    again = ": run this again on this machine with the same code$" if path == "/v1/enrol" else ""
    with pytest.raises(AgentError, match=f"cannot reach .*{again}"):
        enrol(home.environment, hub.url, CODE, hub.ca_pem)
    if path == "/v1/enrol":
        assert find_account(home.environment, None) == before
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in home.files())
    (key,) = hub.keys
    hub.reply = None
    account, _, _ = enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert account.private_key_pem is not None
    assert SigningKey.from_pem(account.private_key_pem.encode()).public == key
    assert find_account(home.environment, None) == account
    assert not [file for file in home.files() if file.name.startswith("enrolment")]


def test_each_code_has_a_key_of_its_own_until_its_hub_has_answered(home: Home, hub: FakeHub) -> None:
    other = new_code(b"d" * 20)
    keys = [pending_key(home.environment, code).kid for code in (CODE, other, CODE)]
    assert keys[0] == keys[2] != keys[1]
    hub.code = CODE
    # A port without a listener.
    for url in ("https://127.0.0.1:1", "https://127.0.0.2:1"):
        with pytest.raises(AgentError, match="cannot reach"):
            enrol(home.environment, url, CODE, hub.ca_pem)
    enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert [key.kid for key in hub.keys] == keys[:1]
    (left,) = (file for file in home.files() if file.suffix == ".pem")
    assert SigningKey.from_pem(left.read_bytes()).kid == keys[1]


def test_a_hub_that_knows_no_such_code_takes_it_from_no_other(home: Home, hub: FakeHub) -> None:
    hub.code = CODE

    def lose(asked: Asked) -> Reply:
        hub.reply = None
        hub.answer(asked)
        raise ConnectionAbortedError

    hub.reply = lose
    with pytest.raises(AgentError, match="run this again"):
        enrol(home.environment, hub.url, CODE, hub.ca_pem)
    with fake_hub(API_KEY) as other, pytest.raises(AgentError, match="answered 401"):
        enrol(home.environment, other.url, CODE, other.ca_pem)
    account, _, _ = enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert account.agent == AGENT


def test_a_pending_key_that_is_damaged_is_made_anew(home: Home) -> None:
    made = {pending_key(home.environment, CODE).kid}
    (file,) = home.files()
    for text in ("", "{}", file.read_text().replace("PRIVATE", "")):
        file.write_text(text)
        kid = pending_key(home.environment, CODE).kid
        assert kid not in made
        made.add(kid)


@pytest.mark.parametrize("code", ["", CODE[:-1], API_KEY])
def test_what_is_no_code_is_sent_to_nobody(home: Home, hub: FakeHub, code: str) -> None:
    with pytest.raises(AgentError, match="not an enrolment code"):
        enrol(home.environment, hub.url, code, hub.ca_pem)
    assert (hub.asked, home.files()) == ([], [])


def test_what_cannot_be_stored_costs_no_code(home: Home, hub: FakeHub) -> None:
    hub.code = CODE
    (home.path / "config").write_text("a file where the folder should be")
    with pytest.raises(AgentError, match="cannot"):
        enrol(home.environment, hub.url, CODE, hub.ca_pem)
    assert hub.asked == []


def test_a_damaged_key_is_named_and_not_quoted(account: Account) -> None:
    damaged = account._replace(api_key=None, private_key_pem="-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n")
    with pytest.raises(AgentError, match="damaged: run `hawse login` again") as error:
        fetch_token(damaged, "prod")
    assert "c2VjcmV0" not in str(error.value)
    with pytest.raises(AgentError, match="has no key"):
        fetch_token(damaged._replace(private_key_pem=None), "prod")
