"""The hub's data folder: signing keys, pepper, certificates, the first admin token and both databases.

The folder is 0700 and each file 0600, made so from its first byte. Losing the signing keys or the pepper
loses every agent and relay; `hawse admin backup` copies all of it.

    hub.lock            held by the hub that listens; another hub starts only by replacing it
    hub.sock            the restart socket, for the handover to a replacing hub
    boots/              a locked file for each running hub, draining ones included
    hub.db              teams, agents, clusters, keys            audit.db   the audit trail
    reserve             space for revocations while the disk is full (proxy/hub/home/reserve.py)
    seen.db             the one-time tokens that were used (proxy/hub/identity/replay_store.py)
    keys/<kid>.pem      signing keys                             keys/active   the kid that signs
    keys/succession     the rotation statements, oldest first (auth/key_rotation.py)
    pepper              32 bytes that key the stored hashes
    admin-token         the token that `hawse admin` on this machine uses
    admin.json          where the admin API listens, and its certificate
    tls/                the development CA and its certificate, unless a certificate is configured
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from auth.apikey import ApiKeyError, new_api_key, parse
from auth.keys import KeyFormatError, KeySet, SigningKey
from proxy.process.untrusted_json import read_json

PEPPER_BYTES = 32
# SQLite's smallest page. A database has at least one page.
DATABASE_BYTES_MIN = 512
# Keys, tokens and certificates have a few kilobytes; a hub writes no larger file.
FILE_BYTES_MAX = 1024 * 1024
_MISSING = "missing"
# Prefix of the folder in which a restore unpacks. An interrupted restore leaves it behind.
RESTORING = ".restore-"
# A signed statement (auth/key_rotation.py).
_STATEMENT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)

_NO_LOCKS = "choose a data_dir on a file system that has locks and sockets"
# The next step for each system error on a file of the folder.
_NEXT_STEPS = {
    errno.ENOENT: "restore it from a backup",
    errno.ENOSPC: "free some of the disk",
    errno.EDQUOT: "free some of this user's quota",
    errno.EROFS: "mount it for writing, or choose another data_dir",
    errno.EACCES: "run this as the user that the data folder belongs to",
    errno.EISDIR: "move that folder away",
    errno.EEXIST: "it is no folder, so move it away",
    # From flock(2) and bind(2) on some network file systems.
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
}


class DataDirError(Exception):
    """The data folder cannot be used; the message names the file and the next step, never its contents."""


class FolderInUseError(DataDirError):
    """Another process holds the folder's lock."""

    def __init__(self, path: Path, pid: str) -> None:
        super().__init__(
            f"another process{f' ({pid})' if pid else ''} runs on {path}: stop that hub first, "
            "take its place by --replace, or give this one another data_dir"
        )
        self.path = path
        self.pid = pid


@attrs.define(eq=False)
class FolderLock:
    """The folder's lock. Its holder may listen for the hub's clients, and replace the folder's files.

    The lock belongs to the open file and not to the process, so a handover can pass it on: a process that
    receives the descriptor holds the same lock, and the lock is free when both have closed it.
    """

    descriptor: int

    def sign(self) -> None:
        """Write this process's id into the file, for the error message of FolderInUseError."""
        os.pwrite(self.descriptor, f"{os.getpid():<19}\n".encode("ascii"), 0)

    def signature(self) -> str:
        """Return the process id that `sign` has written."""
        return os.pread(self.descriptor, 20, 0).decode("ascii", "replace").strip()

    def release(self) -> None:
        """Close this process's descriptor of the lock; a second call does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            # Not by LOCK_UN, which would also release it for the process that it was passed to.
            os.close(descriptor)


@attrs.frozen
class SigningKeys:
    """The hub's signing keys: one signs, and all verify, for the overlap of a rotation."""

    active: SigningKey
    all: tuple[SigningKey, ...]
    succession: tuple[str, ...] = ()
    """The statements that lead from older keys to the active one, oldest first."""
    public: KeySet = attrs.field(init=False)
    """For agents, and for the hub to verify its own tokens; the active key is the first."""

    @public.default
    def _public_of_all(self) -> KeySet:
        others = sorted((key for key in self.all if key.kid != self.active.kid), key=lambda key: key.kid)
        return KeySet(key.public for key in (self.active, *others))

    @property
    def pins(self) -> KeySet:
        """The keys that a newly enrolled relay gets: none that is about to be removed."""
        return KeySet([self.active.public])


@attrs.frozen
class AdminEndpoint:
    """The URL of this hub's admin API, and the certificate that it presents."""

    url: str
    certificate_pem: str


@attrs.frozen
class DataDir:
    """Paths and contents of the folder; `open` creates and checks it."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> DataDir:
        """Make the folder if it is missing, and check that only its owner has access; raises DataDirError."""
        try:
            _make_folder(path)
            # Other users may already have read an open folder, so report it instead of changing its mode.
            check_private(path)
            for name in ("keys", "tls"):
                (path / name).mkdir(mode=0o700, exist_ok=True)
        except FileExistsError as error:
            raise DataDirError(_no_folder(error.filename)) from error
        except OSError as error:
            raise DataDirError(f"cannot use the data folder {path}: {explained(error)}") from error
        return cls(path)

    def check_folder(self) -> bool:
        """Return whether the folder exists; raises DataDirError where `open` would fail.

        Changes nothing.
        """
        try:
            if not os.path.lexists(self.path):
                _check_parent(self.path)
                return False
            if not self.path.is_dir():
                raise DataDirError(_no_folder(self.path))
            check_private(self.path)
            for folder in (self.path, self.keys_dir, self.tls_dir, self.instances_dir):
                if is_there(folder):
                    check_writable(folder)
        except OSError as error:
            raise DataDirError(f"cannot use the data folder {self.path}: {explained(error)}") from error
        return True

    def check_databases(self) -> None:
        """Raise DataDirError for the first fault of the databases."""
        for fault in self.faults_of_databases():
            raise DataDirError(fault)

    def faults_of_databases(self) -> Iterator[str]:
        """Yield a message for each missing or damaged database. A start would replace it by an empty one.

        A missing trail is not reported here: only the store knows whether one must exist.
        """
        if not is_there(self._endpoint_file):
            cut = next(self.path.glob(f"{RESTORING}*"), None)
            if cut is not None and not is_there(self.store_file):
                yield (
                    f"a restore into {self.path} was cut short: restore a backup, "
                    f"or remove {cut} to begin with no team, agent or cluster"
                )
            return
        fault = _fault_of_database(self.store_file)
        if fault:
            also = "" if fault == _MISSING else f"{self.store_file} and "
            yield (
                f"{self.store_file} is {fault}, though this hub has run before: restore a backup, "
                f"or remove {also}{self._endpoint_file} to begin with no team, agent or cluster"
            )
        fault = _fault_of_database(self.audit_file)
        if fault not in {"", _MISSING}:
            yield (
                f"{self.audit_file} is {fault}, though this hub has run before: put a copy in its place, "
                "or remove it and begin a new trail by `hawse admin audit accept`"
            )

    @property
    def store_file(self) -> Path:
        return self.path / "hub.db"

    @property
    def audit_file(self) -> Path:
        return self.path / "audit.db"

    @property
    def seen_file(self) -> Path:
        return self.path / "seen.db"

    @property
    def reserve_file(self) -> Path:
        return self.path / "reserve"

    @property
    def keys_dir(self) -> Path:
        return self.path / "keys"

    @property
    def tls_dir(self) -> Path:
        return self.path / "tls"

    @property
    def _pepper_file(self) -> Path:
        return self.path / "pepper"

    @property
    def _endpoint_file(self) -> Path:
        # A hub writes it last in its start, so it shows that all other files were made.
        return self.path / "admin.json"

    @property
    def lock_file(self) -> Path:
        return self.path / "hub.lock"

    @property
    def restart_socket_file(self) -> Path:
        return self.path / "hub.sock"

    @property
    def instances_dir(self) -> Path:
        return self.path / "boots"

    @property
    def admin_token_file(self) -> Path:
        return self.path / "admin-token"

    def lock(self) -> FolderLock:
        """Lock the folder until the lock is released or the process ends, for any reason.

        Raises FolderInUseError when another process holds it, and DataDirError when its file cannot be used.
        """
        try:
            lock = FolderLock(os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with ExitStack() as undo:
                undo.callback(lock.release)
                try:
                    fcntl.flock(lock.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise FolderInUseError(self.path, lock.signature()) from error
                lock.sign()
                undo.pop_all()
        except OSError as error:
            raise DataDirError(f"cannot write {self.lock_file}: {explained(error)}") from error
        return lock

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder for the block; raises FolderInUseError."""
        lock = self.lock()
        try:
            yield
        finally:
            lock.release()

    def signing_keys(self) -> SigningKeys:
        """Load the signing keys, making the first one at the first start; raises DataDirError."""
        found = self.existing_signing_keys()
        if found is not None:
            return found
        # An interrupted first start may have left a key, which is as good as a new one.
        first = next(iter(self._keys().values()), None) or SigningKey.generate()
        return self.store_signing_keys(SigningKeys(first, (first,)))

    def existing_signing_keys(self) -> SigningKeys | None:
        """Load the signing keys; None before the first start has made them. Raises DataDirError."""
        keys = self._keys()
        active_file = self.keys_dir / "active"
        if not keys and is_there(self.store_file):
            raise DataDirError(
                f"{self.keys_dir} holds no signing key, though this hub has run before: "
                "restore a backup, since relays trust only the keys of their enrolment"
            )
        if not keys or (len(keys) == 1 and not (is_there(active_file) or is_there(self.store_file))):
            return None
        kid = read_private(active_file).decode("ascii", "replace").strip() if is_there(active_file) else ""
        if kid not in keys:
            raise DataDirError(
                f"{active_file}: names no existing key; write one of {', '.join(keys)} into it"
            )
        return SigningKeys(keys[kid], tuple(keys.values()), self._succession())

    def _keys(self) -> dict[str, SigningKey]:
        keys = {}
        for file in self._key_files():
            try:
                key = SigningKey.from_pem(read_private(file))
            except KeyFormatError as error:
                raise DataDirError(f"{file}: {error}; restore it from a backup") from error
            if file.stem != key.kid:
                raise DataDirError(f"{file}: holds the key {key.kid}; name the file after it")
            keys[key.kid] = key
        return keys

    def _key_files(self) -> list[Path]:
        if not is_there(self.keys_dir):
            return []
        try:
            # Path.glob would treat an unreadable folder as an empty one.
            return sorted(file for file in self.keys_dir.iterdir() if file.suffix == ".pem")
        except OSError as error:
            raise DataDirError(f"cannot read {self.keys_dir}: {explained(error)}") from error

    def _succession(self) -> tuple[str, ...]:
        file = self.keys_dir / "succession"
        there = is_there(file)
        statements = tuple(read_private(file).decode("ascii", "replace").split()) if there else ()
        # Written before `active`, even before the first rotation.
        if not there or not all(map(_STATEMENT.fullmatch, statements)):
            raise DataDirError(
                f"{file}: {'damaged' if there else 'missing'}; restore it from a backup, or make it an empty "
                "file and apply new manifests for each relay that was enrolled before the last rotation "
                "(hawse admin cluster key)"
            )
        return statements

    def store_signing_keys(self, keys: SigningKeys) -> SigningKeys:
        """Make the folder hold exactly these keys, and return them; raises DataDirError.

        A crash in between leaves keys with which the hub starts: a new key is written before `active` names
        it, and old keys are removed last.
        """
        try:
            self._store_signing_keys(keys)
        except OSError as error:
            message = f"cannot keep the signing keys in {self.keys_dir}: {explained(error)}"
            raise DataDirError(message) from error
        return keys

    def _store_signing_keys(self, keys: SigningKeys) -> None:
        for key in keys.all:
            if not is_there(self.keys_dir / f"{key.kid}.pem"):
                write_private(self.keys_dir / f"{key.kid}.pem", key.to_pem())
        statements = "".join(f"{statement}\n" for statement in keys.succession)
        write_private(self.keys_dir / "succession", statements.encode("ascii"))
        write_private(self.keys_dir / "active", f"{keys.active.kid}\n".encode("ascii"))
        kept = {f"{key.kid}.pem" for key in keys.all}
        for file in self.keys_dir.glob("*.pem"):
            if file.name not in kept:
                file.unlink(missing_ok=True)

    def pepper(self) -> bytes:
        """Load the pepper, making it at the first start; raises DataDirError."""
        found = self.existing_pepper()
        if found is not None:
            return found
        pepper = secrets.token_bytes(PEPPER_BYTES)
        write_private(self._pepper_file, pepper.hex().encode("ascii") + b"\n")
        return pepper

    def existing_pepper(self) -> bytes | None:
        """Load the pepper; None before the first start has made it. Raises DataDirError."""
        file = self._pepper_file
        if not is_there(file):
            if not is_there(self.store_file):
                return None
            raise DataDirError(
                f"{file} is missing, though this hub has run before: restore a backup, "
                "since without it no API key is recognised"
            )
        try:
            pepper = bytes.fromhex(read_private(file).decode("ascii"))
        except ValueError:
            pepper = b""  # not chained: the cause would quote the secret
        if len(pepper) != PEPPER_BYTES:
            raise DataDirError(f"{file}: not {PEPPER_BYTES} bytes in hexadecimal; restore it from a backup")
        return pepper

    def admin_token(self) -> str | None:
        """Return the token of `hawse admin` on this machine; None when there is none. Raises DataDirError."""
        if not is_there(self.admin_token_file):
            return None
        try:
            return parse(read_private(self.admin_token_file).decode("ascii", "replace").strip())
        except ApiKeyError as error:
            raise DataDirError(
                f"{self.admin_token_file}: {error}; delete it and start the hub again for a new one"
            ) from error

    def make_admin_token(self) -> str:
        """Write a new token for `hawse admin` on this machine; the caller adds it to the store."""
        token = new_api_key(secrets.token_bytes(32))
        write_private(self.admin_token_file, token.encode("ascii") + b"\n")
        return token

    def write_admin_endpoint(self, endpoint: AdminEndpoint) -> None:
        """Write the admin API's address for `hawse admin` on this machine."""
        text = json.dumps({"url": endpoint.url, "certificate_pem": endpoint.certificate_pem}, indent=1)
        write_private(self._endpoint_file, text.encode("utf-8") + b"\n")

    def admin_endpoint(self) -> AdminEndpoint | None:
        """Return where the admin API last listened; None before the first start. Raises DataDirError."""
        file = self._endpoint_file
        if not is_there(file):
            return None
        try:
            document = read_json(read_private(file))
            return AdminEndpoint(str(document["url"]), str(document["certificate_pem"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataDirError(f"{file}: damaged; start the hub again") from error


def _make_folder(path: Path) -> None:
    """Make the folder if it is missing; raises FileExistsError for a file, else DataDirError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        if os.path.lexists(path):
            raise
        raise DataDirError(fault_of_missing_folder(path, error)) from error


def _no_folder(path: str | Path) -> str:
    return f"{path} is no folder: move it away, or choose another data_dir"


def _check_parent(path: Path) -> None:
    """Raise DataDirError when the folder, which is missing, cannot be made."""
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    try:
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        check_writable(above)
    except OSError as error:
        raise DataDirError(fault_of_missing_folder(path, error)) from error


def check_writable(path: Path, *, folder: bool = True) -> None:
    """Raise the OSError that writing to a folder or a file would raise."""
    number = 0
    if path.is_dir() is not folder:
        number = errno.ENOTDIR if folder else errno.EISDIR
    elif os.statvfs(path).f_flag & os.ST_RDONLY:
        number = errno.EROFS
    elif not os.access(path, os.R_OK | os.W_OK | (os.X_OK if folder else 0)):
        number = errno.EACCES
    if number:
        raise OSError(number, os.strerror(number), str(path))


def fault_of_missing_folder(path: Path, error: OSError) -> str:
    """Return the message for a missing data folder, and why the hub cannot make it."""
    # Not Path.is_dir, which raises below a folder without access.
    above = next(folder for folder in path.absolute().parents if os.path.isdir(folder))
    return (
        f"the data folder {path} does not exist, and cannot be made in {above}: {error.strerror}: "
        "create it for the user that runs the hub (mode 700), or set data_dir"
    )


def _fault_of_database(file: Path) -> str:
    """Return what is wrong with a file that is too small for a database; empty when it may be one.

    SQLite would treat some of these files as a new database.
    """
    if not is_there(file):
        return _MISSING
    size = file.stat().st_size
    if size >= DATABASE_BYTES_MIN:
        return ""
    return f"damaged ({size} bytes are no database)" if size else "empty"


def is_there(file: Path) -> bool:
    """Return whether a file exists; raises DataDirError when the check fails.

    From Python 3.14 on Path.exists returns False then, and the hub would replace a secret that exists.
    """
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataDirError(f"cannot read {file}: {explained(error)}") from error
    return True


def explained(error: OSError) -> str:
    """Return the system's message for an error on a file of the folder, with the next step if known."""
    step = _NEXT_STEPS.get(error.errno or 0)
    return f"{error.strerror}: {step}" if step else str(error.strerror)


def check_private(path: Path) -> None:
    """Raise DataDirError when other users have access to the path."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise DataDirError(
            f"{path} belongs to another user (uid {status.st_uid}): run this as that user, "
            "or change the owner"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        kind = "700" if path.is_dir() else "600"
        raise DataDirError(
            f"{path} is open to other users: run chmod {kind} {path}, and treat its secrets as disclosed"
        )


def read_private(file: Path) -> bytes:
    """Read a file that only its owner may read; raises DataDirError."""
    try:
        check_private(file)
        with file.open("rb") as opened:
            data = opened.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise DataDirError(f"cannot read {file}: {explained(error)}") from error
    if len(data) > FILE_BYTES_MAX:
        raise DataDirError(f"{file}: larger than {FILE_BYTES_MAX} bytes")
    return data


def write_private(file: Path, data: bytes) -> None:
    """Replace a file atomically, readable by its owner alone from the first byte; raises DataDirError.

    A crash leaves the old file or the new one, never a part: half a pepper would be a lost pepper.
    """
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fsync(opened.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise DataDirError(f"cannot write {file}: {explained(error)}") from error
