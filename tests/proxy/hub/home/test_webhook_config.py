from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
import trustme

from proxy.hub.home.config import load
from proxy.hub.home.sections.webhook import WEBHOOKS_MAX, WebhookConfig, faults_of_webhooks, read_secret
from proxy.process.config import ConfigError

URL = "https://hooks.example/hunter2"


def slack(**changes: Any) -> WebhookConfig:
    stated = {"name": "on-call", "url": URL, "format": "slack", **changes}
    return WebhookConfig(**stated)


def fault(**changes: Any) -> str:
    [found] = faults_of_webhooks([slack(**changes)])
    assert "hunter2" not in found
    return found


def test_a_webhook_is_read_from_the_file_alone(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(base64.b64encode(bytes(32)).decode())
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    file = tmp_path / "hub.toml"
    file.write_text(
        f"""
        [[webhook]]
        name = "on-call"
        url = "{URL}"
        format = "slack"
        [[webhook]]
        name = "approvals"
        url = "https://10.0.0.7:8443/hawse?x=1"
        secret_file = "key"
        ca_file = "ca.pem"
        allow_private_address = true
        """
    )
    one, two = load(file, {"HOME": "/home/op"}).webhook
    assert one == slack()
    assert (two.format, two.secret_file, two.ca_file) == ("json", tmp_path / "key", tmp_path / "ca.pem")
    assert (two.host, two.allow_private_address) == ("10.0.0.7", True)
    with pytest.raises(ConfigError, match="HAWSE_HUB_WEBHOOK_URL: no such setting"):
        load(file, {"HOME": "/home/op", "HAWSE_HUB_WEBHOOK_URL": URL})


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "hub.toml"
    file.write_text(
        '[[webhook]]\nname = "a"\nurl = "http://hunter2"\n'
        '[[webhook]]\nname = "a"\nurl = "https://x"\nformat = "slack"\nca_file = "none.pem"\n'
    )
    with pytest.raises(ConfigError) as refused:
        load(file, {"HOME": "/home/op"})
    assert refused.value.faults == [
        "webhook.1.url: expected https://host/path, without a user name and a fragment",
        'webhook.1.secret_file: missing: a receiver of format = "json" checks the signature',
        f"webhook.2.ca_file: cannot be read: No such file or directory, looked for in {tmp_path}",
        "webhook.2.name: the same as an earlier one's",
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example/hunter2",
        "hooks.example/hunter2",
        "https://",
        "https:///hunter2",
        "https://user:hunter2@hooks.example/",
        "https://hooks.example/#hunter2",
        "https://hooks.example/hunter2 x",
        "https://hooks.example/hunter2\r\nHost: x",
        "https://hooks.example\\@evil.example/",
        "https://hooks.example:0/",
        "https://hooks.example:hunter2/",
        "https://hööks.example/",
        "https://[::1/",
        "file:///hunter2",
        "",
    ],
)
def test_a_url_that_is_not_plain_https_is_refused(url: str) -> None:
    assert fault(url=url).startswith("webhook.1.url: ")


def test_addresses_that_are_not_public_have_to_be_allowed() -> None:
    for host in ("127.0.0.1", "10.0.0.7:8443", "[::1]", "[fd00::1]", "[::ffff:192.168.1.1]"):
        assert "allow it by allow_private_address = true" in fault(url=f"https://{host}/")
        assert faults_of_webhooks([slack(url=f"https://{host}/", allow_private_address=True)]) == []
    for host in ("169.254.169.254", "0.0.0.0", "[::ffff:169.254.169.254]"):
        assert "never connects to" in fault(url=f"https://{host}/", allow_private_address=True)


@pytest.mark.parametrize("name", ["", "On-Call", "a b", "a/b", "-", "x" * 100])
def test_a_name_is_a_short_word(name: str) -> None:
    assert fault(name=name).startswith("webhook.1.name: ")


def test_their_number_is_bounded() -> None:
    some = [slack(name=f"w{number}") for number in range(WEBHOOKS_MAX + 1)]
    assert faults_of_webhooks(some[:-1]) == []
    assert faults_of_webhooks(some) == [f"webhook: expected at most {WEBHOOKS_MAX}"]


def test_a_secret_is_base64_with_or_without_the_prefix_of_the_standard(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    for size in (24, 32, 64):
        text = base64.b64encode(bytes(range(size))).decode()
        for written in (text, f"{text}\n", f"whsec_{text}\n"):
            file.write_text(written)
            assert read_secret(file) == bytes(range(size))


@pytest.mark.parametrize("text", ["", "hunter2", "hunter2 " * 8, "ö" * 32, "A" * 28, "A" * 100])
def test_another_secret_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret"
    file.write_text(text)
    assert "openssl rand -base64 32" in fault(secret_file=file)


def test_a_secret_is_in_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in fault(secret_file=tmp_path)
    assert "is not a regular file" in fault(secret_file=tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file"):
        read_secret(tmp_path / "pipe")
    assert "cannot be read" in fault(secret_file=tmp_path / "none")


def test_a_ca_is_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("hunter2")
    assert fault(ca_file=tmp_path / "ca.pem").endswith("ca.pem holds no usable certificate")
