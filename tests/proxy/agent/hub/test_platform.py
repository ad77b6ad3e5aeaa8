from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.agent.https.blocking import trusting
from proxy.agent.hub.platform import TOKEN_BYTES_MAX, platform_token
from proxy.agent.local.account import find_account
from proxy.agent.local.errors import AgentError
from proxy.agent.login import log_in_by_platform
from tests.fakes.https import Asked, Reply
from tests.fakes.hub import AGENT, FakeHub, fake_hub
from tests.faults.egress import open_egress
from tests.proxy.agent.conftest import Home

TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
HUB = "https://hub.example"


def test_a_token_is_read_from_its_file_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for token in (TOKEN, TOKEN + "2"):
        file.write_text(f"{token}\n")
        assert platform_token(f"file:{file}", HUB, {}) == token


@pytest.mark.parametrize("content", [b"", b"a b", b"\xff", b"x" * (TOKEN_BYTES_MAX + 1), b"a\nb"])
def test_a_file_that_holds_no_token_is_named_and_not_quoted(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "token"
    file.write_bytes(content)
    with pytest.raises(AgentError, match="did not give a valid platform token") as error:
        platform_token(f"file:{file}", HUB, {})
    assert str(file) in str(error.value)
    file.unlink()
    with pytest.raises(AgentError, match="No such file"):
        platform_token(f"file:{file}", HUB, {})
    with pytest.raises(AgentError, match="another version"):
        platform_token("cloud", HUB, {})


@pytest.fixture
def github() -> Iterator[FakeHub]:
    with fake_hub("") as server:
        yield server


def test_github_is_asked_for_a_token_for_this_hub(github: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.agent.hub.platform.trusting", lambda _: trusting(github.ca_pem))
    environment = {
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"{github.url}/token?api-version=2",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "gh-bearer",
    }
    github.reply = lambda _: FakeHub.json(200, {"value": TOKEN})
    assert platform_token("github", HUB, environment) == TOKEN
    [asked] = github.asked
    assert asked.path == "/token?api-version=2&audience=https%3A%2F%2Fhub.example"
    assert asked.headers["authorization"] == "Bearer gh-bearer"
    answers: list[tuple[Reply, str]] = [
        (FakeHub.json(403, {}), "answered 403"),
        ((302, {"location": "https://evil.example"}, b""), "answered 302"),
        ((200, {}, b"<html>"), "without a token"),
        ((200, {}, b"[" * 60_000), "without a token"),
        (FakeHub.json(200, {}), "without a token"),
        (FakeHub.json(200, {"value": "a b"}), "not give a valid platform token"),
    ]
    for answer, words in answers:
        github.reply = lambda _, answer=answer: answer  # type: ignore[misc]
        with pytest.raises(AgentError, match=words) as error:
            platform_token("github", HUB, environment)
        assert "gh-bearer" not in str(error.value)


def test_github_is_asked_through_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        fake_hub("", name="github.example") as github,
        open_egress({"github.example": "127.0.0.1"}, password="s3cret") as egress,
    ):
        monkeypatch.setattr("proxy.agent.hub.platform.trusting", lambda _: trusting(github.ca_pem))
        monkeypatch.setenv("HTTPS_PROXY", egress.url())
        github.reply = lambda _: FakeHub.json(200, {"value": TOKEN})
        environment = {
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{github.url}/token",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "gh-bearer",
        }
        assert platform_token("github", HUB, environment) == TOKEN
        assert egress.asked == [github.url.removeprefix("https://")]
        monkeypatch.setenv("HTTPS_PROXY", egress.url("wrong"))
        with pytest.raises(AgentError, match=rf"the proxy 127.0.0.1:{egress.port} for a token: .*407"):
            platform_token("github", HUB, environment)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "id-token: write"),
        ({"ACTIONS_ID_TOKEN_REQUEST_URL": "https://x"}, "id-token: write"),
        *(
            ({"ACTIONS_ID_TOKEN_REQUEST_URL": url, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "t"}, "not an https")
            for url in ("http://x", "https://", "https://x:port", "https://[x")
        ),
        (
            {
                "ACTIONS_ID_TOKEN_REQUEST_URL": "https://127.0.0.1:1",
                "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "t",
            },
            "cannot reach",
        ),
    ],
)
def test_outside_of_a_job_that_may_there_is_no_token(environment: dict[str, str], words: str) -> None:
    with pytest.raises(AgentError, match=words):
        platform_token("github", HUB, environment)


def test_a_login_by_the_platform_keeps_no_secret(home: Home, hub: FakeHub, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    forms = []
    plain = hub.answer

    def reply(asked: Asked) -> Reply:
        if asked.path == "/oauth/token":
            forms.append(asked.form)
            return FakeHub.json(200, {"access_token": "token-for-hub", "expires_in": 59})
        hub.reply = None
        return plain(asked)

    hub.reply = reply
    account, reach, path = log_in_by_platform(home.environment, hub.url, f"file:{file}", hub.ca_pem, AGENT)
    assert reach.clusters == ("prod", "dev")
    assert forms == [
        {
            "resource": hub.url,
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "subject_token": TOKEN,
            "client_id": AGENT,
        }
    ]
    assert find_account(home.environment, None) == account
    stored = Path(path).read_text()
    assert TOKEN not in stored
    [entry] = json.loads(stored)["hubs"].values()
    assert entry["platform"] == f"file:{file}"
    assert {"api_key", "private_key_pem"}.isdisjoint(entry)
