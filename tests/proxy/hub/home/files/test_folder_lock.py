from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from proxy.hub.home.datadir import DataDir
from proxy.hub.home.files.folder_lock import FolderInUseError, FolderLock
from proxy.hub.home.files.private_files import DataDirError


def test_one_process_at_a_time(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    with data.locked():
        with pytest.raises(DataDirError, match="another process"):
            with DataDir.open(tmp_path).locked():
                pass
    with data.locked():
        pass


def test_the_lock_goes_with_its_descriptor_and_names_who_holds_it(tmp_path: Path) -> None:
    data = DataDir.open(tmp_path)
    first = data.lock()
    # As it arrives at another process: the same open file.
    second = FolderLock(os.dup(first.descriptor))
    first.release()
    first.release()
    with pytest.raises(FolderInUseError) as caught:
        data.lock()
    assert caught.value.pid == str(os.getpid())
    assert f"({os.getpid()})" in str(caught.value)
    second.release()
    data.lock().release()


def test_a_lock_that_cannot_be_written_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = DataDir.open(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", fail)
        with pytest.raises(DataDirError, match=r"^cannot write .*hub\.lock: No space left .*: free some"):
            data.lock()
    # Nor is it held any more.
    data.lock().release()
