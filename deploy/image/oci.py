"""An image in the layout of the Open Container Initiative, as one tar file: blobs named by SHA-256, an index.

The bytes depend on the contents alone. Entries are in order, owners and times are given, modes normalised.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import stat
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@attrs.frozen
class Blob:
    """Content with its type, named by its hash."""

    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    @property
    def descriptor(self) -> dict[str, object]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data)}


@attrs.frozen
class Layer:
    """A part of the root file system. `diff_id` is the hash of the tar, `size` the bytes of its files."""

    blob: Blob
    diff_id: str
    size: int


@attrs.frozen
class Owned:
    """A folder that does not belong to root: its owner's number and its mode."""

    owner: int
    mode: int


def layer(root: Path, paths: Iterable[str], mtime: int, owned: Mapping[str, Owned] | None = None) -> Layer:
    """Pack these paths of a root. All of it is owned by root and writable by root alone, except `owned`."""
    raw = io.BytesIO()
    size = 0
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(paths):
            entry = _entry(root / path, path, mtime, (owned or {}).get(path))
            if entry.isreg():
                size += entry.size
                with (root / path).open("rb") as file:
                    tar.addfile(entry, file)
            else:
                tar.addfile(entry)
    data = raw.getvalue()
    packed = io.BytesIO()
    # Not gzip.compress, whose header differs between versions of Python.
    with gzip.GzipFile("", "wb", 6, packed, mtime=0) as file:
        file.write(data)
    return Layer(Blob(_LAYER, packed.getvalue()), f"sha256:{hashlib.sha256(data).hexdigest()}", size)


def _entry(file: Path, path: str, mtime: int, owned: Owned | None) -> tarfile.TarInfo:
    """The header of a file, folder or link. Setuid, setgid and sticky bits never remain."""
    entry = tarfile.TarInfo(path)
    entry.mtime = mtime
    status = file.lstat()
    if stat.S_ISLNK(status.st_mode):
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(file.readlink()), 0o777
    elif stat.S_ISDIR(status.st_mode):
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    elif stat.S_ISREG(status.st_mode):
        entry.size, entry.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
    else:
        raise ValueError(f"/{path} is neither file, folder nor link")
    if owned is not None:
        entry.uid = entry.gid = owned.owner
        entry.mode = owned.mode
    return entry


@attrs.frozen
class Image:
    """A manifest and all that it names."""

    manifest: Blob
    config: Blob
    layers: Sequence[Layer]

    @property
    def compressed(self) -> int:
        """Bytes that a registry stores."""
        return sum(len(layer.blob.data) for layer in self.layers)

    @property
    def unpacked(self) -> int:
        """Bytes of the files on a node."""
        return sum(layer.size for layer in self.layers)


def image(
    layers: Sequence[tuple[str, Layer]], architecture: str, created: str, config: Mapping[str, object]
) -> Image:
    """An image of layers, each with a sentence on what it holds; `config` is what a runtime starts with."""
    settings = {
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for _, layer in layers]},
        "history": [{"created": created, "created_by": text} for text, _ in layers],
    }
    packed = [layer for _, layer in layers]
    blob = Blob(_CONFIG, _json(settings))
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": blob.descriptor,
        "layers": [layer.blob.descriptor for layer in packed],
    }
    return Image(Blob(_MANIFEST, _json(manifest)), blob, packed)


def write(image: Image, file: Path, name: str, architecture: str, mtime: int) -> None:
    """Write an archive that podman, skopeo and containerd load under `name`.

    A file is there only when it is complete: a write that fails or is killed leaves what was there before.
    """
    annotations = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    platform = {"architecture": architecture, "os": "linux"}
    described = {**image.manifest.descriptor, "platform": platform, "annotations": annotations}
    index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [described]}
    files = {"oci-layout": _json({"imageLayoutVersion": "1.0.0"}), "index.json": _json(index)}
    for blob in (image.manifest, image.config, *(layer.blob for layer in image.layers)):
        files[f"blobs/sha256/{blob.digest.removeprefix('sha256:')}"] = blob.data
    part = file.with_name(f"{file.name}.part")
    with tarfile.open(part, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, data in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mtime = len(data), mtime
            tar.addfile(entry, io.BytesIO(data))
    part.replace(file)


def _json(value: object) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
