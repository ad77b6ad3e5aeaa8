from __future__ import annotations

from pathlib import Path

import pytest

from proxy.agent.account import find_account
from proxy.agent.errors import AgentError
from proxy.agent.login import log_in, read_ca
from tests.fakes.hub import AGENT, FakeHub
from tests.proxy.agent.conftest import API_KEY, Home


def test_a_key_that_the_hub_takes_is_stored_under_its_agent(home: Home, hub: FakeHub) -> None:
    account, reach, path = log_in(home.environment, hub.url + "/", f"{API_KEY}\n", hub.ca_pem)
    assert reach.clusters == ("prod", "dev")
    assert (account.hub, account.agent, account.api_key) == (hub.url, AGENT, API_KEY)
    assert find_account(home.environment, None) == account
    assert Path(path).is_file()


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
    for content in (b"nonsense", b"", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(AgentError, match="no certificate"):
            read_ca(str(path))
    with pytest.raises(AgentError, match="No such file"):
        read_ca(str(tmp_path / "missing"))
