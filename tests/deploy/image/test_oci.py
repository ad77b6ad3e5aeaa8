"""The archive of an image, on a tree of a few files."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import resource
import tarfile
from pathlib import Path

import pytest

from deploy.image import oci
from deploy.image.root import walk

OWNED = {"data": oci.Owned(65532, 0o700)}
NAME = "registry.example/hawse-relay:1"


def tree(folder: Path) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "bin/su").write_text("program")
    (folder / "bin/su").chmod(0o6755)
    (folder / "world").write_text("writable")
    (folder / "world").chmod(0o666)
    (folder / "link").symlink_to("bin")
    return folder


def archive(folder: Path, root: Path) -> bytes:
    made = oci.image(
        [("all", oci.layer(root, walk(root), 7, OWNED))], "amd64", "1970-01-01T00:00:07Z", {"User": "65532"}
    )
    oci.write(made, folder / "image.tar", NAME, "amd64", 7)
    return (folder / "image.tar").read_bytes()


def test_a_layer_has_no_privileged_mode_and_only_the_owners_that_are_given(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    data = oci.layer(root, walk(root), 7, OWNED).blob.data
    # Neither a name, nor a time, nor a system.
    assert data[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    packed = gzip.decompress(data)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        found = {each.name: (each.mode, each.uid, each.gid, each.mtime) for each in tar}
    assert found == {
        "bin": (0o755, 0, 0, 7),
        "bin/su": (0o755, 0, 0, 7),
        "data": (0o700, 65532, 65532, 7),
        "link": (0o777, 0, 0, 7),
        "world": (0o644, 0, 0, 7),
    }


def test_two_trees_of_equal_contents_give_equal_archives(tmp_path: Path) -> None:
    roots = [tree(tmp_path / name) for name in ("one", "other")]
    # Neither time nor owner of a file counts.
    os.utime(roots[1] / "world", (1, 1))
    made = []
    for root in roots:
        folder = tmp_path / f"{root.name}-image"
        folder.mkdir()
        made.append(archive(folder, root))
    assert made[0] == made[1]
    (roots[1] / "world").write_text("changed")
    assert archive(folder, roots[1]) != made[0]


def test_every_blob_is_named_by_its_hash_and_reached_from_the_index(tmp_path: Path) -> None:
    archive(tmp_path, tree(tmp_path / "root"))
    with tarfile.open(tmp_path / "image.tar") as tar:
        files = {each.name: file.read() for each in tar if (file := tar.extractfile(each))}
    blobs = {name: data for name, data in files.items() if name.startswith("blobs/")}
    assert all(name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}" for name, data in blobs.items())
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}

    def blob(descriptor: dict[str, object]) -> bytes:
        data = blobs.pop(f"blobs/{str(descriptor['digest']).replace(':', '/')}")
        assert len(data) == descriptor["size"]
        return data

    [described] = json.loads(files["index.json"])["manifests"]
    assert described["annotations"]["org.opencontainers.image.ref.name"] == NAME
    manifest = json.loads(blob(described))
    config = json.loads(blob(manifest["config"]))
    layers = [gzip.decompress(blob(each)) for each in manifest["layers"]]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    assert (config["architecture"], config["os"], config["config"]) == ("amd64", "linux", {"User": "65532"})
    assert blobs == {}


def test_a_device_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="/pipe is neither file, folder nor link"):
        oci.layer(tmp_path, ["pipe"], 0)


def test_an_archive_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    before = archive(tmp_path, tree(tmp_path / "root"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a full disk, a write fails in the middle.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            archive(tmp_path, tmp_path / "root")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "image.tar").read_bytes() == before
