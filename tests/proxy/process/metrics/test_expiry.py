from __future__ import annotations

import datetime
from pathlib import Path

import pytest
import trustme

from proxy.process.files import FileError
from proxy.process.metrics.expiry import watch_expiry

ENDS = datetime.datetime(2031, 5, 4, tzinfo=datetime.UTC)


def issue(file: Path, ends: datetime.datetime) -> None:
    authority = trustme.CA()
    file.write_bytes(authority.issue_cert("hub.example", not_after=ends).cert_chain_pems[0].bytes())


def test_a_renewed_certificate_is_seen_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.process.files.STAT_INTERVAL_S", 0.0)
    file = tmp_path / "hub.pem"
    issue(file, ENDS)
    expires_at = watch_expiry(file)
    assert expires_at() == ENDS.timestamp()
    later = ENDS + datetime.timedelta(days=90)
    issue(file, later)
    assert expires_at() == later.timestamp()
    file.write_text("broken")
    assert expires_at() == later.timestamp()
    with pytest.raises(FileError, match="cannot be read"):
        watch_expiry(file)
