from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.hub.home.sections.webhook import WebhookConfig
from tests.fakes.receiver import FakeReceiver, running_receiver

SECRET = bytes(range(32))


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[FakeReceiver]:
    with running_receiver(tmp_path) as receiver:
        yield receiver


@pytest.fixture
def webhook_at(tmp_path: Path) -> Callable[..., WebhookConfig]:
    """The configuration of a webhook at a receiver."""
    secret_file = tmp_path / "webhook.secret"
    secret_file.write_text(base64.b64encode(SECRET).decode() + "\n")

    def configured(receiver: FakeReceiver, **changes: Any) -> WebhookConfig:
        stated = {
            "name": "on-call",
            "url": receiver.url,
            "secret_file": secret_file,
            "ca_file": receiver.ca_file,
            "allow_private_address": True,
            **changes,
        }
        return WebhookConfig(**stated)

    return configured


@pytest.fixture
def other_receiver(tmp_path: Path) -> Iterator[FakeReceiver]:
    with running_receiver(tmp_path) as receiver:
        yield receiver
