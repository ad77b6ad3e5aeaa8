from __future__ import annotations

import os
import pwd
from types import SimpleNamespace

import pytest

from proxy.hub.store.local_user import is_local_token_name, is_user, local_token_name, local_user


@pytest.mark.parametrize("name", ["ada", r"CORP\ada", "ada@corp.example", "svc$", "a" * 64])
def test_the_user_is_the_real_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    asked: list[int] = []

    def find(uid: int) -> SimpleNamespace:
        asked.append(uid)
        return SimpleNamespace(pw_name=name)

    monkeypatch.setattr(pwd, "getpwuid", find)
    for environment in ({}, {"USER": "root", "LOGNAME": "root"}, {"SUDO_USER": name}):
        assert local_user(environment) == name
    assert local_user({"SUDO_USER": "eve"}) == f"{name}(sudo:eve)"
    assert is_user(local_user({"SUDO_USER": "eve"}))
    assert set(asked) == {os.getuid()}


@pytest.mark.parametrize("name", ["", "a:b", "a b", "ádám", "a\nb", "\x1b[2J", "a(sudo:b)", "a" * 65])
def test_a_name_that_no_hub_takes_is_a_number(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name=name))
    assert local_user({"SUDO_USER": name}) == f"uid-{os.getuid()}"
    assert is_user(f"uid-{os.getuid()}")


def test_a_user_without_a_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(uid: int) -> SimpleNamespace:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", find)
    assert local_user({}) == f"uid-{os.getuid()}"


def test_the_tokens_of_machines_have_names_that_no_other_token_gets() -> None:
    assert (local_token_name(None), local_token_name("0a1b2c3d")) == ("local", "local-0a1b2c3d")
    assert all(map(is_local_token_name, ("local", "local-0a1b2c3d")))
    assert not any(map(is_local_token_name, ("", "locals", "local-", "local-0a1b2c3", "local-0a1b2c3d\n")))
