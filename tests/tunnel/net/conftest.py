"""What the tests of TCP and TLS share."""

from __future__ import annotations

import pytest

from tunnel.net import tcp


@pytest.fixture
def checkpoint_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is a checkpoint, as trio's contract demands."""
    monkeypatch.setattr(tcp, "RECEIVES_PER_PASS", 1)
    monkeypatch.setattr(tcp, "SENDS_PER_PASS", 1)
