from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from proxy.agent.local.account import (
    Account,
    find_account,
    host_and_port,
    hub_origin,
    load_accounts,
    save_account,
)
from proxy.agent.local.errors import AgentError

KEY = "hws_secret"


def account(hub: str = "https://hub.example", serial: str = "1") -> Account:
    return Account(hub, "robot", KEY, None, serial)


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://hub.example", "https://hub.example"),
        ("https://Hub.Example:443/", "https://hub.example"),
        ("HTTPS://hub.example:08443", "https://hub.example:8443"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("https://127.0.0.1", "https://127.0.0.1"),
    ],
)
def test_a_hub_has_one_name(written: str, origin: str) -> None:
    assert hub_origin(written) == origin
    assert hub_origin(origin) == origin


@pytest.mark.parametrize(
    "written",
    [
        "http://hub.example",
        "hub.example",
        "https://",
        "https://hub.example/path",
        "https://user:pw@hub.example",
        "https://hub.example?x",
        "https://hub.example:0",
        "https://hub.example:65536",
        "https://hub.example:x",
        "https://hub.example\n",
        "https://-x",
        "https://hub example",
    ],
)
def test_what_is_no_hub_is_refused(written: str) -> None:
    with pytest.raises(AgentError, match="hub's URL"):
        hub_origin(written)


def test_an_origin_comes_apart() -> None:
    assert host_and_port("https://hub.example") == ("hub.example", 443)
    assert host_and_port("https://[::1]:8443") == ("::1", 8443)


def test_logins_are_kept_by_hub_and_the_last_one_counts(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    save_account(environment, account())
    save_account(environment, account("https://other.example"))
    path = save_account(environment, account(serial="2"))
    assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600
    accounts = load_accounts(environment)
    assert set(accounts) == {"https://hub.example", "https://other.example"}
    assert accounts["https://hub.example"] == account(serial="2")
    assert find_account(environment, "https://other.example").hub == "https://other.example"


def test_every_way_to_have_no_login_names_the_next_step(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    with pytest.raises(AgentError, match="hawse login --hub URL"):
        find_account(environment, None)
    with pytest.raises(AgentError, match=r"hawse login --hub https://else\.example"):
        find_account(environment, "https://else.example")
    save_account(environment, account())
    assert find_account(environment, None) == account()
    # A login sends an API key, and any text that an agent reads can name a hub.
    with pytest.raises(AgentError, match=r"^not logged in to https://else\.example, only to https://hub\.ex"):
        find_account(environment, "https://else.example")
    save_account(environment, account("https://other.example"))
    with pytest.raises(AgentError, match="--hub"):
        find_account(environment, None)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"version":1,"hubs":{"x":{}}}',
        '{"version":1,"hubs":{"https://Hub.example":{"agent":"a","serial":"s","api_key":"k"}}}',
        f'"{KEY}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_damaged_file_is_named_and_not_quoted(tmp_path: Path, content: str) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = Path(save_account(environment, account()))
    path.write_text(content)
    with pytest.raises(AgentError, match="damaged") as error:
        load_accounts(environment)
    assert KEY not in str(error.value)
    assert error.value.__cause__ is None


def test_a_file_of_a_newer_hawse_is_left_alone(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    Path(save_account(environment, account())).write_text('{"version":3}')
    with pytest.raises(AgentError, match="newer version of hawse"):
        load_accounts(environment)


def test_a_key_is_in_no_representation() -> None:
    assert KEY not in repr(account())


def test_a_file_of_the_first_version_is_still_read(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = Path(save_account(environment, account()))
    entry = {"agent": "robot", "api_key": KEY, "ca_pem": None, "serial": "1"}
    path.write_text(json.dumps({"version": 1, "hubs": {"https://hub.example": entry}}))
    assert find_account(environment, None) == account()
