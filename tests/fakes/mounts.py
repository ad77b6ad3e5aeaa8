"""A volume as the kubelet mounts it and puts new content into it."""

from __future__ import annotations

from pathlib import Path


def mount(folder: Path, content: dict[str, bytes]) -> None:
    """Lay files out as the kubelet mounts a volume: links through `..data`, itself a link."""
    swap(folder, 1, content)
    for name in content:
        (folder / name).symlink_to(Path("..data") / name)


def swap(folder: Path, version: int, content: dict[str, bytes]) -> None:
    """Put new content in place as the kubelet does: a new folder, then one rename of the link."""
    fresh = folder / f"..{version}"
    fresh.mkdir()
    for name, data in content.items():
        (fresh / name).write_bytes(data)
    (folder / "..data_tmp").symlink_to(fresh.name)
    (folder / "..data_tmp").rename(folder / "..data")
