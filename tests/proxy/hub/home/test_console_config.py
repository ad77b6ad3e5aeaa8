from __future__ import annotations

from pathlib import Path

import pytest

from proxy.hub.home.config import load
from proxy.hub.home.sections.console import ConsoleConfig, faults_of_console
from proxy.process.config import Address, ConfigError

HERE, ANYWHERE = Address("127.0.0.1", 8446), Address("::", 8446)


def test_without_a_listener_there_is_no_console() -> None:
    assert faults_of_console(ConsoleConfig()) == []
    assert ConsoleConfig().public_url == ""
    assert faults_of_console(ConsoleConfig(None, "https://console.example", ("10.0.0.1",))) == [
        "console.public_url: goes with console.listen only",
        "console.listen_proxy_from: goes with console.listen only",
    ]


def test_a_first_look_on_loopback_needs_no_url_and_no_certificate() -> None:
    console = ConsoleConfig(HERE)
    assert (console.public_url, console.tls, console.tls_host) == ("http://127.0.0.1:8446", False, None)
    assert faults_of_console(console) == []


def test_over_tls_the_hubs_certificate_names_the_host() -> None:
    console = ConsoleConfig(ANYWHERE, "https://console.example:8446")
    assert (console.tls, console.tls_host) == (True, "console.example")
    assert faults_of_console(console) == []


@pytest.mark.parametrize(
    ("listen", "url", "fault"),
    [
        (ANYWHERE, "", "missing"),
        (ANYWHERE, "http://127.0.0.1:8446", "is for a browser on this machine"),
        (HERE, "http://console.example", "is for a browser on this machine"),
        (HERE, "http://10.0.0.1:8446", "is for a browser on this machine"),
        (HERE, "https://console.example/console", "the console is at the root"),
        (HERE, "http://127.0.0.1:8446/x", "the console is at the root"),
        (HERE, "ftp://127.0.0.1", "expected https://host"),
        (HERE, "http://", "expected http://host"),
        (HERE, "https://ada:secret@console.example", "must not hold a user name"),
        (HERE, "https://Console.example", "lower case"),
    ],
)
def test_a_url_that_no_browser_should_open_is_a_fault(listen: Address, url: str, fault: str) -> None:
    (found,) = faults_of_console(ConsoleConfig(listen, url))
    assert found.startswith("console.public_url: ")
    assert fault in found
    assert "secret" not in found


@pytest.mark.parametrize("url", ["http://localhost:8446", "http://[::1]:8446", "http://127.0.0.1"])
def test_plain_http_is_for_loopback(url: str) -> None:
    assert faults_of_console(ConsoleConfig(HERE, url)) == []


def test_it_is_read_with_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text('[console]\nlisten = "[::]:8446"\npublic_url = "https://console.example/"\n')
    assert load(file, {}).console == ConsoleConfig(ANYWHERE, "https://console.example")
    with pytest.raises(ConfigError) as caught:
        load(
            file, {"HAWSE_HUB_ADMIN_LISTEN": "[::]:8446", "HAWSE_HUB_CONSOLE_LISTEN_PROXY_FROM": "0.0.0.0/0"}
        )
    assert caught.value.faults == [
        "console.listen_proxy_from: number 1 is every address: any client could claim another address",
        "console.listen: the same address as admin.listen; the console needs a separate listener",
    ]
