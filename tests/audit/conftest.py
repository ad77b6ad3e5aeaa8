from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from audit.store import AuditStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.db"


@pytest.fixture
def store(path: Path) -> Iterator[AuditStore]:
    store = AuditStore(path)
    yield store
    store.close()
