"""The image's root: Debian's packages unpacked, much of them removed, and a few files added."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from deploy.image import ImageError, last_words
from deploy.image.debian import Package, control, unmet

USER = 65532
STATUS = Path("var/lib/dpkg/status.d")
# What starts programs; the kernel demands that it may be executed.
_LOADER = "ld-linux-"
# Where a runtime mounts.
_FOLDERS = ("dev", "etc/hawse", "proc", "run", "sys", "tmp", "var/lib")
# Where links of Debian's lead, empty as they are.
_LINKED = ("usr/sbin",)
# Where OpenSSL looks by default. In Debian, such a link is in the package of the program.
_TRUST = "usr/lib/ssl/cert.pem"
_CERTIFICATES = "usr/share/ca-certificates/mozilla"
_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
_FILES = {
    "etc/passwd": f"hawse:x:{USER}:{USER}:Hawse:/nonexistent:/nonexistent\n",
    "etc/group": f"hawse:x:{USER}:\n",
    # Debian makes it by a script. Names in /etc/hosts come before those of DNS.
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def unpack(root: Path, packages: Sequence[Package], debs: Sequence[Path], left_out: Iterable[str]) -> None:
    """Unpack packages, and list them in the folder where scanners of images without dpkg look.

    Raises ImageError for a dependency that is neither among them nor left out on purpose.
    """
    root.mkdir(parents=True)
    depends = {}
    stanzas = {}
    for package, deb in zip(packages, debs, strict=True):
        _extract(deb, root)
        fields = control(deb)
        needs = (fields.get("Pre-Depends", ""), fields.get("Depends", ""))
        depends[package.name] = ", ".join(filter(None, needs))
        stanzas[package.name] = "".join(f"{key}: {value}\n" for key, value in fields.items())
    if missing := unmet(depends, left_out):
        name, clause = missing[0]
        raise ImageError(f"{name} depends on '{clause}': add it to packages.toml, or to its [left_out]")
    _bundle_certificates(root)
    (root / STATUS).mkdir(parents=True)
    for name, text in stanzas.items():
        (root / STATUS / name).write_text(text)


def _extract(deb: Path, root: Path) -> None:
    done = subprocess.run(["dpkg-deb", "--extract", deb, root], capture_output=True, text=True)
    if done.returncode != 0:
        raise ImageError(f"{deb.name} cannot be unpacked: {last_words(done)}")


def _bundle_certificates(root: Path) -> None:
    """All trusted certificates in one file, as update-ca-certificates makes it."""
    certificates = sorted((root / _CERTIFICATES).glob("*.crt"))
    if not certificates:
        raise ImageError(f"ca-certificates has none in /{_CERTIFICATES}")
    bundle = root / _BUNDLE
    bundle.parent.mkdir(parents=True, exist_ok=True)
    bundle.write_text("".join(f"{each.read_text().rstrip()}\n" for each in certificates))


def remove(
    root: Path, patterns: Sequence[str], keep_doc: Sequence[str], keep_programs: Sequence[str]
) -> None:
    """Remove what matches, all programs and all documents but those to keep, and folders that are then empty.

    Raises ImageError for a pattern that matches nothing: a package has changed, and the list no longer fits.
    """
    matching = [re.compile(fnmatch.translate(pattern)) for pattern in patterns]
    used = set()
    for path in list(walk(root)):
        if path.startswith(str(STATUS)) or str(STATUS).startswith(path):
            continue
        hits = {index for index, pattern in enumerate(matching) if pattern.match(path)}
        used |= hits
        folder, _, name = path.rpartition("/")
        program = folder.rpartition("/")[2] == "bin" and path not in keep_programs
        document = path.startswith("usr/share/doc/") and name not in keep_doc
        if hits or program or (document and not (root / path).is_dir()):
            _delete(root / path)
        elif _is_regular(root / path) and path not in keep_programs and not name.startswith(_LOADER):
            # Some modules may be executed too, by programs that are not there.
            (root / path).chmod(0o644)
    if unused := [pattern for index, pattern in enumerate(patterns) if index not in used]:
        raise ImageError(f"packages.toml removes '{unused[0]}', which no package has")
    # The deepest first, so that a folder of empty folders goes too.
    for path in sorted(walk(root), key=lambda path: -path.count("/")):
        if (root / path).is_dir() and not (root / path).is_symlink() and not any((root / path).iterdir()):
            (root / path).rmdir()


def _is_regular(path: Path) -> bool:
    """Whether it is a file, and no link: an absolute one leads out of the root, to a file of this machine."""
    return path.is_file() and not path.is_symlink()


def _delete(path: Path) -> None:
    """Delete a file or folder that may have gone with its parent."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def add_files(root: Path) -> None:
    """Add the one user, the trusted certificates' place, and the folders on which a runtime mounts."""
    for name in (*_FOLDERS, *_LINKED):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / _TRUST).parent.mkdir(parents=True, exist_ok=True)
    (root / _TRUST).symlink_to(f"/{_BUNDLE}")
    for name, text in _FILES.items():
        (root / name).write_text(text)


def walk(root: Path) -> Iterator[str]:
    """All files, folders and links of a root, relative to it, in order."""
    for folder, folders, files in os.walk(root):
        # A link to a folder is not walked into.
        folders.sort()
        for name in sorted((*folders, *files)):
            yield os.path.relpath(os.path.join(folder, name), root)


def compile_python(python_root: Path, root: Path, folder: str) -> None:
    """Compile modules for the image's Python, by that Python. `python_root` is a root for this machine.

    The root is read-only when it runs, so each start would compile what has no bytecode. Python does not
    compare the bytecode with its source, whose time differs between machines.
    """
    [libraries] = (python_root / "usr/lib").glob("*-linux-gnu")
    [loader] = libraries.glob(f"{_LOADER}*")
    argv: list[str | Path] = [
        loader,
        "--library-path",
        libraries,
        python_root / "usr/bin/python3.13",
        "-S",
        "-B",
    ]
    argv += ["-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", root, "-p", "/"]
    argv.append(root / folder)
    # One process and a fixed seed: otherwise the order in a set, and so the bytecode, may differ.
    environment = {"PYTHONHOME": str(python_root / "usr"), "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise ImageError(f"a module does not compile: {last_words(done)}")


def programs(root: Path) -> list[str]:
    """All files that may be executed, but the loader."""
    found = []
    for path in walk(root):
        mode = (root / path).lstat().st_mode
        if stat.S_ISREG(mode) and mode & 0o111 and not Path(path).name.startswith(_LOADER):
            found.append(path)
    return found
