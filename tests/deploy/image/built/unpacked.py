"""An image unpacked as a runtime does it, and its processes: read-only root, the image's user, no more."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shlex
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

# As a runtime does: the root is mounted read-only, then the volumes on top. The process takes the shell's
# place, so that it gets the signals.
_START = """\
set -e
root=$1; shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc -o ro proc "$root/proc"
mount -t tmpfs -o size=64k,mode=755 dev "$root/dev"
mknod -m 666 "$root/dev/null" c 1 3
{volumes}
chroot=$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)
exec env -i {variables} "$chroot" --userspec={user} "$root" "$@"
"""


@attrs.frozen
class Unpacked:
    """An image's root in a folder, and the configuration of its processes."""

    target: str
    file: Path
    root: Path
    config: Mapping[str, Any]
    compressed: int
    """Bytes of the layers in a registry."""
    entries: Mapping[str, tarfile.TarInfo]
    """The last entry of each path in the layers."""

    def argv(
        self,
        argv: Sequence[str],
        *,
        volumes: Mapping[Path, str] | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> list[str]:
        """The command that runs `argv` in the image.

        `volumes` maps folders of this machine to paths in the image: mount points, or below /tmp. A path that
        ends with `:ro` is mounted read-only.
        """
        settings = dict(each.split("=", 1) for each in self.config["Env"]) | (variables or {})
        program = settings["PATH"].split(":")[0] + "/" + argv[0] if "/" not in argv[0] else argv[0]
        script = _START.format(
            volumes="\n".join(self._mount(folder, inside) for folder, inside in (volumes or {}).items()),
            variables=" ".join(shlex.quote(f"{key}={value}") for key, value in settings.items()),
            user=self.config["User"],
        )
        start = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
        return [*start, str(self.root), program, *argv[1:]]

    def _mount(self, folder: Path, inside: str) -> str:
        inside, _, mode = inside.partition(":")
        source, target = shlex.quote(str(folder)), f'"$root"{shlex.quote(inside)}'
        commands = [f"mount --bind {source} {target}"]
        if inside.startswith("/tmp/"):
            # A folder of the tests by its own path, for which the image has no mount point.
            commands[:0] = ['mount -t tmpfs -o mode=755 tmp "$root/tmp"', f"mkdir -p {target}"]
            commands.append('mount -o remount,ro "$root/tmp"')
        if mode == "ro":
            commands.append(f"mount -o remount,bind,ro {target}")
        return "\n".join(commands)

    def run(self, *argv: str, **more: Mapping[Any, str] | None) -> subprocess.CompletedProcess[str]:
        """Run a command in the image to its end."""
        return subprocess.run(self.argv(argv, **more), capture_output=True, text=True)


def unpack(target: str, file: Path, folder: Path) -> Unpacked:
    """Unpack an archive, with a check of each hash."""
    with tarfile.open(file) as tar:
        files = {each.name: opened.read() for each in tar if (opened := tar.extractfile(each))}

    def blob(descriptor: Mapping[str, Any]) -> bytes:
        data = files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert descriptor["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert descriptor["size"] == len(data)
        return data

    [described] = json.loads(files["index.json"])["manifests"]
    manifest = json.loads(blob(described))
    config = json.loads(blob(manifest["config"]))
    root = folder / "root"
    root.mkdir(mode=0o755)
    folder.chmod(0o755)
    entries = {}
    for layer, diff_id in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
        data = gzip.decompress(blob(layer))
        assert diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            entries.update({each.name: each for each in tar})
            tar.extractall(root, numeric_owner=True, filter="fully_trusted")
    compressed = sum(layer["size"] for layer in manifest["layers"])
    return Unpacked(target, file, root, config["config"], compressed, entries)
