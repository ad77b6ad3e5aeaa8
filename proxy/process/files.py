"""Files that are replaced while the process runs: tokens, CA bundles, certificates.

Kubernetes replaces them by swapping a symbolic link, so a file is reopened by its path and never held open.
The path is checked by `stat` at most once a second. The file is read only if the result changed.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import trio

from proxy.process.certificates import dns_names, fault_of_ca, first_of, remarks_on
from tunnel.net.connect import server_context

_log = logging.getLogger("hawse.files")

# The interval between checks on the hot path. After a rotation the old token stays valid for minutes.
STAT_INTERVAL_S = 1.0
# A projected token is about 1 KiB, a CA bundle about 10 KiB.
FILE_BYTES_MAX = 1024 * 1024
# OpenSSL's names for a key that does not match; the second is for keys of different types.
_MISMATCHED_KEY = frozenset({"KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})

# A certificate's expiry is checked daily, or CHECKS_PER_LIFE times in a short life, and at most once a
# minute. The first check is after the start.
CHECK_EVERY_S = 24 * 3600.0
CHECKS_PER_LIFE = 100
CHECK_EVERY_MIN_S = 60.0
FIRST_CHECK_S = 3600.0

_Value = TypeVar("_Value")


class FileError(Exception):
    """A file cannot be used; the message names it and never holds its content."""


class WatchedFile(Generic[_Value]):
    """A value parsed from a file, read again when the file has changed or was replaced.

    `parse` raises FileError for content it cannot use. While the file is missing or invalid, the last good
    value is kept, and the log says so once per error. `key` is the configuration key that names the file.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes], _Value],
        *,
        key: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file for the first time; raises FileError."""
        self.path = path
        self._name = f"{key}: {path}" if key else str(path)
        self._parse = parse
        self._clock = clock
        self._fault = ""
        self._stamp = self._stamp_of()
        self._value = self._read()
        self._checked_at = clock()

    def current(self) -> _Value:
        """The value, at most STAT_INTERVAL_S old."""
        if self._clock() - self._checked_at >= STAT_INTERVAL_S:
            self.refresh()
        return self._value

    def refresh(self) -> _Value:
        """Check the path now, read the file if it changed, and return the value."""
        self._checked_at = self._clock()
        try:
            stamp = self._stamp_of()
            if stamp != self._stamp:
                self._value = self._read()
                self._stamp = stamp
                _log.info("%s has changed and was read again", self.path)
            self._fault = ""
        except FileError as error:
            if str(error) != self._fault:
                _log.warning("%s; its last good content stays in use", error)
                self._fault = str(error)
        return self._value

    def _stamp_of(self) -> tuple[int, int, int, int]:
        # By path, through symbolic links: a swapped link leads to another inode.
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise FileError(f"{self._name} cannot be read: {error.strerror}") from error
        return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> _Value:
        try:
            with self.path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise FileError(f"{self._name} cannot be read: {error.strerror}") from error
        if len(raw) > FILE_BYTES_MAX:
            raise FileError(f"{self._name} is larger than {FILE_BYTES_MAX} bytes")
        try:
            return self._parse(raw)
        except FileError as error:
            raise FileError(f"{self._name}: {error}") from error


def watch_certificate(
    certificate: Path, key: Path, *, stated: str = "", host: str | None = None, wildcard: str | None = None
) -> WatchedFile[ssl.SSLContext]:
    """The listener's certificate and key, read again when the certificate's file changes.

    `stated` is the configuration key that names the certificate. A certificate without the name `host` is
    served, with a warning in the log; one without the name `wildcard` is refused. Raises FileError.
    """

    def load(pem: bytes) -> ssl.SSLContext:
        context = _load_pair(certificate, key, pem, wildcard)
        _log_remarks(certificate, pem, host)
        return context

    return WatchedFile(certificate, load, key=stated)


def read_certificate(certificate: Path, key: Path, *, stated: str, wildcard: str | None = None) -> bytes:
    """Read a certificate and check that it works with its key, without watching it; raises FileError."""

    def parse(pem: bytes) -> bytes:
        _load_pair(certificate, key, pem, wildcard)
        return pem

    return WatchedFile(certificate, parse, key=stated).current()


def _load_pair(certificate: Path, key: Path, pem: bytes, wildcard: str | None) -> ssl.SSLContext:
    """Load a certificate, whose content is `pem`, and its key; raises FileError."""
    try:
        context = server_context(certificate, key)
    except OSError as error:  # includes ssl.SSLError
        raise FileError(_fault_of_pair(pem, key, error)) from error
    if wildcard is not None and wildcard not in names_of(pem):
        raise FileError(f"it does not name {wildcard}: get one that does, or leave cluster_hosts out")
    return context


def _fault_of_pair(pem: bytes, key: Path, error: OSError) -> str:
    """Why a certificate cannot be used with its key: OpenSSL often does not say which of the two is wrong."""
    # The text around the certificates may be in any language.
    text = pem.decode("ascii", "ignore")
    fault = fault_of_ca(text)
    if fault is not None:
        swapped = "PRIVATE KEY-----" in text and "-----BEGIN CERTIFICATE-----" not in text
        return f"it {fault}, but a private key: are the two files swapped?" if swapped else f"it {fault}"
    if not isinstance(error, ssl.SSLError):
        return f"its key {key} cannot be read: {error.strerror}"
    if error.reason in _MISMATCHED_KEY:
        return f"its key {key} is another certificate's"
    if not error.reason:
        return f"its key {key} is no private key in PEM, or has a password"
    return f"it cannot be used with the key {key}: {error.reason}"


def names_of(pem: bytes) -> frozenset[str]:
    """The DNS names of the first certificate, in lower case."""
    shown = first_of(pem)
    return frozenset() if shown is None else frozenset(dns_names(shown))


async def warn_of_expiry(certificate: Path) -> NoReturn:
    """Log warnings while the certificate in the file is near its expiry; never returns."""
    wait_s = FIRST_CHECK_S
    while True:
        await trio.sleep(wait_s)
        wait_s = _check_expiry(certificate)


def _check_expiry(certificate: Path) -> float:
    """Warn if the expiry is near; returns the seconds until the next check."""
    try:
        pem = certificate.read_bytes()
    except OSError:
        # The WatchedFile logs this error.
        return CHECK_EVERY_S
    _log_remarks(certificate, pem, None)
    shown = first_of(pem)
    if shown is None:
        return CHECK_EVERY_S
    life = shown.not_valid_after_utc - shown.not_valid_before_utc
    return min(CHECK_EVERY_S, max(CHECK_EVERY_MIN_S, life.total_seconds() / CHECKS_PER_LIFE))


def _log_remarks(certificate: Path, pem: bytes, host: str | None) -> None:
    """Log why clients refuse a certificate, now or soon."""
    for remark in remarks_on(pem, datetime.now(UTC), host):
        _log.warning("%s: %s", certificate, remark.text)
