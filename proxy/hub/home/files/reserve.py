"""Disk space that is allocated in advance, so that a revocation is durable on a disk that is full.

SQLite cannot promise a commit on a full disk: its WAL grows with each transaction, and so does the file at a
checkpoint. So a revocation that store or trail cannot take is an entry of this file. The file is written
whole, with zeros, when it is made; to add an entry overwrites blocks that are allocated already. (A file
system that copies on write, Btrfs or ZFS, allocates all the same and may refuse. `add` then raises.)

    block 0      MAGIC, the generation (u64), the CRC-32 of both
    blocks 1…    entries, one after another, each beginning at a block of its own:
                 length (u32), CRC-32 of generation and payload (u32), payload

An entry begins at a block of its own, so that no later write touches a block that holds one. `clear` writes
the next generation: one write of 28 bytes, by which every entry is void at once. The first entry whose sum is
wrong is the end: it is of an earlier generation, or its write was cut short, and `add` has not returned then.

Each method locks the file and reads it again, so a replaced hub and its successor can share it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from proxy.hub.home.files.private_files import DataDirError

MAGIC = b"hawse reserve 1\n"
# The unit in which file systems allocate, and in which a torn write may be lost.
BLOCK_BYTES = 4096
# 255 entries; an entry has some 700 bytes. An operator locks no more agents while a disk is full.
RESERVE_BYTES = 1024 * 1024

_HEADER = struct.Struct(">16sQI")
_ENTRY = struct.Struct(">II")


class ReserveError(DataDirError):
    """The reserve cannot be used, or is full; the message says why."""


@attrs.define(eq=False)
class Reserve:
    """The file, open; made by `open_reserve`."""

    path: Path
    _descriptor: int

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def allocate(self) -> None:
        """Write the whole file unless that was done before; raises ReserveError.

        The header comes last, so an interrupted start allocates the file again. Zeros are written, because
        fallocate(2) alone may leave metadata to allocate when an extent is first written.
        """
        try:
            with self._locked():
                if self.is_whole():
                    return
                self._write(0, bytes(RESERVE_BYTES))
                self._write(0, _header(1))
                folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            needed = f"free {RESERVE_BYTES // 1024} KiB of the disk"
            raise ReserveError(f"cannot allocate {self.path}: {error.strerror}: {needed}") from error

    def is_whole(self) -> bool:
        """Whether all of it is allocated; raises OSError."""
        begin = os.pread(self._descriptor, _HEADER.size, 0)
        return os.fstat(self._descriptor).st_size >= RESERVE_BYTES and any(begin)

    def add(self, payload: bytes) -> None:
        """Add an entry. It is on the disk when this returns. Raises ReserveError."""
        try:
            with self._locked():
                if not os.fstat(self._descriptor).st_nlink:
                    # The next start would not find the entry.
                    raise ReserveError(f"{self.path} was removed while the hub had it open: restart the hub")
                generation, entries, end = self._read()
                if end + _blocks(payload) * BLOCK_BYTES > RESERVE_BYTES:
                    raise ReserveError(f"{self.path} is full: {len(entries)} revocations wait there already")
                entry = _ENTRY.pack(len(payload), _sum(generation, payload)) + payload
                try:
                    self._write(end, entry)
                except OSError:
                    self._void(end)
                    raise
        except OSError as error:
            raise ReserveError(f"cannot write {self.path}: {error.strerror}") from error

    def entries(self) -> list[bytes]:
        """Read the entries that were not cleared, oldest first; raises ReserveError."""
        try:
            with self._locked():
                return self._read()[1]
        except OSError as error:
            raise ReserveError(f"cannot read {self.path}: {error.strerror}") from error

    def clear(self, settled: Callable[[bytes], bool]) -> bool:
        """Drop all entries if every one is settled, and return whether they were; raises ReserveError."""
        try:
            with self._locked():
                generation, entries, _ = self._read()
                if not all(map(settled, entries)):
                    return False
                if entries:
                    self._write(0, _header(generation + 1))
                return True
        except OSError as error:
            raise ReserveError(f"cannot write {self.path}: {error.strerror}") from error

    def _read(self) -> tuple[int, list[bytes], int]:
        """Return the generation, its entries, and where the next one begins."""
        data = os.pread(self._descriptor, RESERVE_BYTES, 0)
        magic, generation, checksum = _HEADER.unpack_from(data)
        if checksum != zlib.crc32(data[: _HEADER.size - 4]) or magic != MAGIC:
            raise ReserveError(f"{self.path} is damaged: move it away, and repeat the latest revocations")
        entries, at = [], BLOCK_BYTES
        while at + _ENTRY.size <= len(data):
            length, checksum = _ENTRY.unpack_from(data, at)
            payload = data[at + _ENTRY.size : at + _ENTRY.size + length]
            if not length or len(payload) < length or checksum != _sum(generation, payload):
                break
            entries.append(payload)
            at += _blocks(payload) * BLOCK_BYTES
        return generation, entries, at

    def _void(self, at: int) -> None:
        """Void an entry whose write failed: the disk may have stored it all the same.

        No caller would clear it. A later start would repeat it, even after an operator has undone it.
        """
        with suppress(OSError):
            self._write(at, bytes(_ENTRY.size))

    def _write(self, at: int, data: bytes) -> None:
        written = os.pwrite(self._descriptor, data, at)
        if written < len(data):
            raise OSError(0, f"only {written} of {len(data)} bytes were written")
        os.fdatasync(self._descriptor)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


def open_reserve(path: Path) -> Reserve:
    """Open the file, and allocate it if needed; raises ReserveError."""
    try:
        reserve = Reserve(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ReserveError(f"cannot open {path}: {error.strerror}") from error
    try:
        reserve.allocate()
        reserve.entries()
    except BaseException:
        reserve.close()
        raise
    return reserve


def check_reserve(path: Path) -> int:
    """Return how many bytes a start has to allocate; raises ReserveError for a damaged reserve.

    Changes nothing.
    """
    try:
        reserve = Reserve(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return RESERVE_BYTES
    except OSError as error:
        raise ReserveError(f"cannot open {path}: {error.strerror}") from error
    try:
        if not reserve.is_whole():
            return RESERVE_BYTES
        reserve.entries()
    finally:
        reserve.close()
    return 0


def _blocks(payload: bytes) -> int:
    return -(-(_ENTRY.size + len(payload)) // BLOCK_BYTES)


def _header(generation: int) -> bytes:
    begin = struct.pack(">16sQ", MAGIC, generation)
    return begin + zlib.crc32(begin).to_bytes(4, "big")


def _sum(generation: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(generation.to_bytes(8, "big")))
