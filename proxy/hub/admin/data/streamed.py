"""Backups over the admin API: made in the data folder, and then sent in pieces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import attrs
import trio

from proxy.hub.admin.data.backup import BackupError, pack
from proxy.hub.store.engines.errors import ConflictError

# One read of a disk, and one write of TLS records.
PIECE_BYTES = 256 * 1024


class Backups:
    """Makes backups of a data folder, one at a time: each takes as much space as the store."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._under_way = False

    async def make(self) -> BackupPieces:
        """Make a backup, and return it to be sent. Raises ConflictError."""
        if self._under_way:
            raise ConflictError("another backup is under way: wait for its end")
        self._under_way = True
        try:
            file = await trio.to_thread.run_sync(pack, self._data_dir)
        except BackupError as error:
            self._under_way = False
            raise ConflictError(str(error)) from error
        except BaseException:
            self._under_way = False
            raise
        return BackupPieces(self, file, os.fstat(file.fileno()).st_size)

    def end(self) -> None:
        """Note that the pieces were sent, or will not be."""
        self._under_way = False


@attrs.define(eq=False)
class BackupPieces:
    """An archive, as the chunks of a download."""

    _backups: Backups
    _file: BinaryIO
    size: int

    async def receive(self) -> bytes:
        """Read the next piece; b"" at the end."""
        return await trio.to_thread.run_sync(self._file.read, PIECE_BYTES)

    async def aclose(self) -> None:
        """Close the file, whose space is free then."""
        self._backups.end()
        self._file.close()
        await trio.lowlevel.checkpoint()
