"""The ClusterRoles of many clusters as files of a repository: one file for each cluster.

A file's first line marks it as written here, for which cluster and with which options. A file without such a
line is never overwritten, and a symbolic link is never followed. The content depends only on the enrolled
names and these options, so a repository shows real changes alone.
"""

from __future__ import annotations

import enum
import os
import re
import secrets
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import attrs

from auth.principal import IdentityError, slug
from proxy.cli.admin.cluster.manifests import rendered_role
from proxy.cli.errors import CommandError
from proxy.cli.output import Object
from proxy.kubernetes.cluster_role import NAMESPACE, SERVICE_ACCOUNT, is_dns_label

# A cluster's store refuses objects above some 1.5 MiB, so a longer file is not one that is up to date.
FILE_BYTES_MAX = 16 * 1024 * 1024

_FIRST_LINE = re.compile(
    r"# Written by: hawse admin cluster rbac (?P<cluster>[a-z0-9-]+)"
    r"(?: --namespace (?P<namespace>[a-z0-9-]+))?"
    r"(?: --service-account (?P<service_account>[a-z0-9-]+))?"
    r"(?P<constrained> --constrained)?(?P<wildcard> --wildcard)?"
)


class Found(enum.StrEnum):
    """A file's state before anything is written."""

    UNCHANGED = "unchanged"
    MISSING = "missing"
    BEHIND = "behind"
    GONE = "gone"


@attrs.frozen
class Options:
    """The options that a ClusterRole is rendered with."""

    namespace: str = NAMESPACE
    service_account: str = SERVICE_ACCOUNT
    constrained: bool = False
    wildcard: bool = False


@attrs.frozen(kw_only=True)
class Given:
    """The options of a command line; None and False are not given."""

    namespace: str | None = None
    service_account: str | None = None
    constrained: bool = False
    wildcard: bool = False

    def over(self, kept: Options) -> Options:
        """Return these options, and for those not given the kept ones."""
        return Options(
            kept.namespace if self.namespace is None else self.namespace,
            kept.service_account if self.service_account is None else self.service_account,
            self.constrained or kept.constrained,
            self.wildcard or kept.wildcard,
        )


@attrs.frozen
class RoleFile:
    """A cluster's file, its state, and the content that it must have (empty if its cluster is gone)."""

    cluster: str
    path: Path
    found: Found
    content: bytes = attrs.field(default=b"", repr=False)


def check_folder(folder: Path) -> None:
    """Raise CommandError if the folder does not exist. A misspelt one must not become a second set."""
    try:
        os.stat(folder)
    except FileNotFoundError:
        raise CommandError(
            f"the folder {folder} does not exist: create it, or correct --output-dir"
        ) from None
    except OSError as error:
        raise CommandError(f"cannot read {folder}: {error.strerror}") from error


def planned(folder: Path, cluster: str, answer: Object, given: Given, *, keep: bool) -> RoleFile:
    """Compare a cluster's file with the hub's answer; raises CommandError for a file of other origin.

    With `keep`, the options that are not given are those of the existing file.
    """
    try:
        # The hub chooses the name, and a path is made of it.
        path = folder / f"{slug('cluster name', cluster)}.yaml"
    except IdentityError as error:
        raise CommandError(f"the hub's answer holds an invalid name: {error}") from error
    present = _read(path)
    options = Options()
    if present is not None:
        written = parse_first_line(_first_line(present))
        if written is None or written[0] != cluster:
            raise CommandError(
                f"{path} was not written by this command for cluster {cluster}: move it away, or choose "
                "another --output-dir"
            )
        if keep:
            options = written[1]
    content = rendered_file(cluster, answer, given.over(options))
    if present is None:
        return RoleFile(cluster, path, Found.MISSING, content)
    return RoleFile(cluster, path, Found.UNCHANGED if present == content else Found.BEHIND, content)


def left_over(folder: Path, clusters: Collection[str]) -> list[RoleFile]:
    """Return the files that were written for other clusters than these, by name; raises CommandError."""
    known = set(clusters)
    gone = []
    try:
        # Not glob(), which takes a folder that it cannot read for an empty one.
        with os.scandir(folder) as entries:
            paths = sorted(
                folder / entry.name
                for entry in entries
                if entry.name.endswith(".yaml") and entry.is_file(follow_symlinks=False)
            )
    except OSError as error:
        raise CommandError(f"cannot read {folder}: {error.strerror}") from error
    for path in paths:
        if path.stem in known:
            continue
        written = parse_first_line(_first_line(_read(path) or b""))
        if written is not None and written[0] == path.stem:
            gone.append(RoleFile(path.stem, path, Found.GONE))
    return gone


def rendered_file(cluster: str, answer: Object, options: Options) -> bytes:
    """Return a file's content; raises CommandError."""
    place = {"namespace": options.namespace, "service_account": options.service_account}
    role = rendered_role(answer, place, wildcard=options.wildcard, constrained=options.constrained)
    note = f"# For cluster {cluster} alone. Edits are overwritten: run the command again instead."
    return f"{first_line(cluster, options)}\n{note}\n{role}".encode()


def first_line(cluster: str, options: Options) -> str:
    """Return the line that marks a file. Defaults are left out, so that one form has one line."""
    words = ["# Written by: hawse admin cluster rbac", cluster]
    if options.namespace != NAMESPACE:
        words += ["--namespace", options.namespace]
    if options.service_account != SERVICE_ACCOUNT:
        words += ["--service-account", options.service_account]
    words += ["--constrained"] * options.constrained + ["--wildcard"] * options.wildcard
    return " ".join(words)


def parse_first_line(line: str) -> tuple[str, Options] | None:
    """Return the cluster and the options of a file's first line; None for a file of other origin."""
    match = _FIRST_LINE.fullmatch(line)
    if match is None:
        return None
    options = Options(
        match["namespace"] or NAMESPACE,
        match["service_account"] or SERVICE_ACCOUNT,
        constrained=match["constrained"] is not None,
        wildcard=match["wildcard"] is not None,
    )
    if not (is_dns_label(options.namespace) and is_dns_label(options.service_account)):
        return None
    return match["cluster"], options


def write(file: RoleFile) -> None:
    """Replace a file atomically, with the mode of a new one; raises CommandError."""
    temporary = file.path.with_name(f".{file.path.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(file.content)
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(file.path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise CommandError(
            f"cannot write {file.path}: {error.strerror}; correct that, and run the command again"
        ) from error


def _read(path: Path) -> bytes | None:
    """Return a regular file's content; None if nothing is at the path. Raises CommandError."""
    try:
        # Not blocking: a FIFO would wait for a writer. It is refused below.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return opened.read(FILE_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        # Not the methods of Path, which raise what else is wrong with the path.
        if not (os.path.islink(path) or os.path.isdir(path)):
            raise CommandError(f"cannot read {path}: {error.strerror}") from error
    kind = "a symbolic link" if os.path.islink(path) else "not a regular file"
    raise CommandError(f"{path} is {kind}: move it away, or choose another --output-dir")


def _first_line(content: bytes) -> str:
    return content[:1024].partition(b"\n")[0].decode("utf-8", "replace")
