from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from auth.apikey import new_api_key
from proxy.agent.local.account import Account, save_account
from tests.fakes.hub import AGENT, FakeHub, fake_hub

API_KEY = new_api_key(b"k" * 32)


@attrs.frozen
class Home:
    """An agent's home folder and its environment."""

    path: Path
    environment: dict[str, str]

    def files(self) -> list[Path]:
        return sorted(file for file in self.path.rglob("*") if file.is_file())


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the machine's proxy settings: each test sets its own."""
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    environment = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": os.environ["PATH"],
    }
    return Home(tmp_path, environment)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with fake_hub(API_KEY) as hub:
        yield hub


@pytest.fixture
def account(home: Home, hub: FakeHub) -> Account:
    account = Account(hub.url, AGENT, API_KEY, hub.ca_pem, "serial-1")
    save_account(home.environment, account)
    return account
