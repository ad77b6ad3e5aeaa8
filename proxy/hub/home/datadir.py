"""The hub's data folder: signing keys, pepper, certificates, the first admin token and both databases.

The folder is 0700 and each file 0600, made so from its first byte. Losing the signing keys or the pepper
loses every agent and relay; `hawse admin backup` copies all of it.

    hub.lock            held by the hub that listens; a second one starts only in its place
    hub.sock            where that hub gives its place to the one that replaces it
    boots/              a locked file for each hub that lives, those that only finish what they had begun too
    hub.db              teams, agents, clusters, keys            audit.db   the audit trail
    reserve             space for revocations while the disk is full (proxy/hub/home/reserve.py)
    seen.db             tokens that are good once, and were used (proxy/hub/identity/replay_store.py)
    keys/<kid>.pem      signing keys                             keys/active   the kid that signs
    keys/succession     how each key named the next, oldest first (auth/key_rotation.py)
    pepper              32 bytes that key the stored hashes
    admin-token         the token that `hawse admin` on this machine uses
    admin.json          where the admin API listens, and its certificate
    tls/                the development CA and the certificate made by it, unless configured otherwise
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
# A page of SQLite's has at least so many, and a database at least one page.
DATABASE_BYTES_MIN = 512
# Keys, tokens and certificates have a few kilobytes; whatever is larger was not written by a hub.
FILE_BYTES_MAX = 1024 * 1024
_MISSING = "missing"
# How the folder begins in which a restore unpacks; one that is there afterwards is of one that was cut short.
RESTORING = ".restore-"
# A statement that was signed (auth/key_rotation.py).
_STATEMENT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)

_NO_LOCKS = "choose a data_dir on a file system that has locks and sockets"
# What helps where the system refuses a file of the folder.
_NEXT_STEPS = {
    errno.ENOENT: "restore it from a backup",
    errno.ENOSPC: "free some of the disk",
    errno.EDQUOT: "free some of this user's quota",
    errno.EROFS: "mount it for writing, or choose another data_dir",
    errno.EACCES: "run this as the user that the data folder belongs to",
    errno.EISDIR: "move that folder away",
    errno.EEXIST: "it is no folder, so move it away",
    # Of flock(2) and bind(2), as on some file systems of a network.
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
    """The folder's lock: whoever holds it may listen for the hub's clients, and replace the folder's files.

    It belongs to the open file and not to the process, so that a hub can give it to the one that replaces it:
    a process that was sent the descriptor holds the same lock, and it is free when both have closed it.
    """

    descriptor: int

    def sign(self) -> None:
        """Write down which process it is, for whoever finds the folder in use."""
        os.pwrite(self.descriptor, f"{os.getpid():<19}\n".encode("ascii"), 0)

    def signature(self) -> str:
        """Which process has signed."""
        return os.pread(self.descriptor, 20, 0).decode("ascii", "replace").strip()

    def release(self) -> None:
        """Close this process's hold on it; a second call does nothing."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            # Not by LOCK_UN, which would take it from the process that it was given to.
            os.close(descriptor)


@attrs.frozen
class SigningKeys:
    """The hub's signing keys: one signs, all verify, so that a rotation has an overlap."""

    active: SigningKey
    all: tuple[SigningKey, ...]
    succession: tuple[str, ...] = ()
    """The statements that lead from older keys to the active one, oldest first."""
    public: KeySet = attrs.field(init=False)
    """What agents verify with, and the hub what it issued; the active key stands first."""

    @public.default
    def _public_of_all(self) -> KeySet:
        others = sorted((key for key in self.all if key.kid != self.active.kid), key=lambda key: key.kid)
        return KeySet(key.public for key in (self.active, *others))

    @property
    def pins(self) -> KeySet:
        """What a relay that is enrolled now is given: no key that is about to go."""
        return KeySet([self.active.public])


@attrs.frozen
class AdminEndpoint:
    """Where the admin API of this folder's hub listens, and the one certificate it presents there."""

    url: str
    certificate_pem: str


@attrs.frozen
class DataDir:
    """Paths and contents of the folder; `open` makes it fit for use."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> DataDir:
        """Make the folder if it is missing and check that no one else can look in; raises DataDirError."""
        try:
            _make_folder(path)
            # A folder that others can read may already have been read: say so instead of hiding it.
            check_private(path)
            for name in ("keys", "tls"):
                (path / name).mkdir(mode=0o700, exist_ok=True)
        except FileExistsError as error:
            raise DataDirError(_no_folder(error.filename)) from error
        except OSError as error:
            raise DataDirError(f"cannot use the data folder {path}: {explained(error)}") from error
        return cls(path)

    def check_folder(self) -> bool:
        """Return whether the folder is there, and raise DataDirError where `open` would fail.

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
        """Report missing and damaged databases; a start would replace a missing one with an empty one.

        A missing trail is no fault here: only the store knows whether there should be one.
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
        # Written by a hub that has started, when all else is there.
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
        """Hold the folder for one process, until it is released or the process ends, however it ends.

        Raises FolderInUseError when another process holds it, DataDirError when its file cannot be used.
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
        """Hold the folder for the block; raises FolderInUseError."""
        lock = self.lock()
        try:
            yield
        finally:
            lock.release()

    def signing_keys(self) -> SigningKeys:
        """Load the signing keys, making the first one at the first start; raises DataDirError."""
        found = self.made_signing_keys()
        if found is not None:
            return found
        # Of a first start that was cut short: the key is as good as a new one.
        first = next(iter(self._keys().values()), None) or SigningKey.generate()
        return self.store_signing_keys(SigningKeys(first, (first,)))

    def made_signing_keys(self) -> SigningKeys | None:
        """Load the signing keys; None where a first start has not made them. Raises DataDirError."""
        keys = self._keys()
        active_file = self.keys_dir / "active"
        if not keys and is_there(self.store_file):
            raise DataDirError(
                f"{self.keys_dir} holds no signing key, though this hub has run before: "
                "restore a backup, for relays trust only the keys that they were given"
            )
        if not keys or (len(keys) == 1 and not (is_there(active_file) or is_there(self.store_file))):
            return None
        kid = read_private(active_file).decode("ascii", "replace").strip() if is_there(active_file) else ""
        if kid not in keys:
            raise DataDirError(
                f"{active_file}: names no key that is there; write one of {', '.join(keys)} into it"
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
            # Path.glob would take a folder that cannot be looked into for an empty one.
            return sorted(file for file in self.keys_dir.iterdir() if file.suffix == ".pem")
        except OSError as error:
            raise DataDirError(f"cannot look into {self.keys_dir}: {explained(error)}") from error

    def _succession(self) -> tuple[str, ...]:
        file = self.keys_dir / "succession"
        there = is_there(file)
        statements = tuple(read_private(file).decode("ascii", "replace").split()) if there else ()
        # It is written before `active`, also where no key has named another yet.
        if not there or not all(map(_STATEMENT.fullmatch, statements)):
            raise DataDirError(
                f"{file}: {'damaged' if there else 'missing'}; restore it from a backup, or make it an empty "
                f"file and give each relay that was enrolled before the last rotation its manifests anew "
                "(hawse admin cluster key)"
            )
        return statements

    def store_signing_keys(self, keys: SigningKeys) -> SigningKeys:
        """Make the folder hold exactly these, and return them; raises DataDirError.

        A crash in between leaves keys with which the hub starts: what is new is there before `active` names
        it, and what is old goes last.
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
        found = self.made_pepper()
        if found is not None:
            return found
        pepper = secrets.token_bytes(PEPPER_BYTES)
        write_private(self._pepper_file, pepper.hex().encode("ascii") + b"\n")
        return pepper

    def made_pepper(self) -> bytes | None:
        """Load the pepper; None where a first start has not made it. Raises DataDirError."""
        file = self._pepper_file
        if not is_there(file):
            if not is_there(self.store_file):
                return None
            raise DataDirError(
                f"{file} is missing, though this hub has run before: restore a backup, "
                "for without it no API key can be recognised"
            )
        try:
            pepper = bytes.fromhex(read_private(file).decode("ascii"))
        except ValueError:
            pepper = b""  # not chained: the cause would quote the secret
        if len(pepper) != PEPPER_BYTES:
            raise DataDirError(f"{file}: not {PEPPER_BYTES} bytes in hexadecimal; restore it from a backup")
        return pepper

    def admin_token(self) -> str | None:
        """The token that `hawse admin` on this machine uses; None when there is none. Raises DataDirError."""
        if not is_there(self.admin_token_file):
            return None
        try:
            return parse(read_private(self.admin_token_file).decode("ascii", "replace").strip())
        except ApiKeyError as error:
            raise DataDirError(
                f"{self.admin_token_file}: {error}; delete it and start the hub again for a new one"
            ) from error

    def make_admin_token(self) -> str:
        """Write a new token for `hawse admin` on this machine; the caller enters it in the store."""
        token = new_api_key(secrets.token_bytes(32))
        write_private(self.admin_token_file, token.encode("ascii") + b"\n")
        return token

    def write_admin_endpoint(self, endpoint: AdminEndpoint) -> None:
        """Tell `hawse admin` on this machine where the admin API listens."""
        text = json.dumps({"url": endpoint.url, "certificate_pem": endpoint.certificate_pem}, indent=1)
        write_private(self._endpoint_file, text.encode("utf-8") + b"\n")

    def admin_endpoint(self) -> AdminEndpoint | None:
        """Where the hub of this folder last listened; None before its first start. Raises DataDirError."""
        file = self._endpoint_file
        if not is_there(file):
            return None
        try:
            document = read_json(read_private(file))
            return AdminEndpoint(str(document["url"]), str(document["certificate_pem"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataDirError(f"{file}: damaged; start the hub again") from error


def _make_folder(path: Path) -> None:
    """Make the folder where it is missing; raises FileExistsError for a file, DataDirError for all else."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise
    except OSError as error:
        if os.path.lexists(path):
            raise
        raise DataDirError(fault_of_absence(path, error)) from error


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
        raise DataDirError(fault_of_absence(path, error)) from error


def check_writable(path: Path, *, folder: bool = True) -> None:
    """Raise the OSError that the use of a folder, or of a file of ours, would meet."""
    number = 0
    if path.is_dir() is not folder:
        number = errno.ENOTDIR if folder else errno.EISDIR
    elif os.statvfs(path).f_flag & os.ST_RDONLY:
        number = errno.EROFS
    elif not os.access(path, os.R_OK | os.W_OK | (os.X_OK if folder else 0)):
        number = errno.EACCES
    if number:
        raise OSError(number, os.strerror(number), str(path))


def fault_of_absence(path: Path, error: OSError) -> str:
    """Say that the data folder is missing, and why a hub cannot make it."""
    # Not Path.is_dir, which raises below a folder that is closed to us.
    above = next(folder for folder in path.absolute().parents if os.path.isdir(folder))
    return (
        f"the data folder {path} does not exist, and cannot be made in {above}: {error.strerror}: "
        "create it for the user that runs the hub (mode 700), or set data_dir"
    )


def _fault_of_database(file: Path) -> str:
    """What is wrong with a database that is too small to be one; empty when it may be one.

    SQLite itself takes some of these for a new one.
    """
    if not is_there(file):
        return _MISSING
    size = file.stat().st_size
    if size >= DATABASE_BYTES_MIN:
        return ""
    return f"damaged ({size} bytes are no database)" if size else "empty"


def is_there(file: Path) -> bool:
    """Return whether there is such a file; raises DataDirError when that cannot be told.

    Path.exists calls it missing then, from Python 3.14 on, and a missing secret is one that is made anew.
    """
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DataDirError(f"cannot read {file}: {explained(error)}") from error
    return True


def explained(error: OSError) -> str:
    """What the system says of a file in the folder, and the next step where that is known."""
    step = _NEXT_STEPS.get(error.errno or 0)
    return f"{error.strerror}: {step}" if step else str(error.strerror)


def check_private(path: Path) -> None:
    """Raise DataDirError when anyone but the owner has rights on the path."""
    status = path.stat()
    if status.st_uid != os.geteuid():
        raise DataDirError(
            f"{path} belongs to another user (uid {status.st_uid}): run this as that user, "
            "or change the owner"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        kind = "700" if path.is_dir() else "600"
        raise DataDirError(
            f"{path} is open to other users: run chmod {kind} {path}, and consider its secrets known"
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
    """Replace a file as a whole, readable by its owner alone from the first byte; raises DataDirError.

    A crash leaves the old file or the new one, never half of it: half a pepper would be a lost one.
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
