"""When a certificate expires, for the metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from proxy.process.certificates import first_of
from proxy.process.files import FileError, WatchedFile


def watch_expiry(certificate: Path) -> Callable[[], float]:
    """Return a function that says when the certificate in a file expires, in epoch seconds.

    The file is read again only if it has changed. While it is missing or invalid, the last good value stays.
    Raises FileError.
    """
    return WatchedFile(certificate, _expiry).current


def _expiry(pem: bytes) -> float:
    shown = first_of(pem)
    if shown is None:
        raise FileError("its expiry cannot be read")
    return shown.not_valid_after_utc.timestamp()
