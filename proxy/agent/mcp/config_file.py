"""Adds one server to the configuration file of an MCP client. Nothing that is there is changed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping

from proxy.agent.local.errors import AgentError
from proxy.agent.local.files import FILE_BYTES_MAX, write_private
from proxy.process.untrusted_json import read_json


def add_server(path: str, section: str, name: str, entry: Mapping[str, object]) -> bool:
    """Add an entry under a name, and return whether the file has changed. Raises AgentError.

    The file is replaced whole, or not at all. A missing one is created (0600); an existing one keeps its mode
    and the order of its keys. An equal entry is left as it is, and another one of this name is an error.
    Errors name the path as it is, not escaped.
    """
    # Such files are often symbolic links into a settings folder: change the target.
    target = os.path.realpath(path)
    raw, mode = _read(target, path)
    document = _parse(raw, path)
    servers = document.setdefault(section, {})
    if not isinstance(servers, dict):
        raise AgentError(f"{path} is no client's configuration: {section} is not an object")
    if name in servers:
        if servers[name] == entry:
            return False
        raise AgentError(
            f"{path} has another server {name} under {section}, which is never overwritten: "
            "remove it there, or choose another name with --name"
        )
    servers[name] = dict(entry)
    write_private(target, _text(document, path), mode=mode)
    return True


def _read(target: str, path: str) -> tuple[bytes, int]:
    """Return the content and the mode of a file, or those of a new one. Raises AgentError."""
    try:
        with open(target, "rb", opener=_open_at_once) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise AgentError(f"{path} is not a regular file")
            raw = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return b"", 0o600
    except OSError as error:
        raise AgentError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise AgentError(f"{path} is no client's configuration: it is larger than {FILE_BYTES_MAX} bytes")
    return raw, stat.S_IMODE(mode)


def _open_at_once(path: str, flags: int) -> int:
    # A FIFO would wait for a writer.
    return os.open(path, flags | os.O_NONBLOCK)


def _parse(raw: bytes, path: str) -> dict[str, object]:
    """Return the object of a file, a new one for an empty file. Raises AgentError."""
    if not raw.strip():
        return {}
    try:
        document = read_json(raw, unique=True)
    except ValueError as error:
        raise AgentError(
            f"{path} is not plain JSON ({error}), and comments would be lost: add the entry by hand, as "
            "this command prints it without --write"
        ) from error
    if not isinstance(document, dict):
        raise AgentError(f"{path} is no client's configuration: it is not a JSON object")
    return document


def _text(document: Mapping[str, object], path: str) -> bytes:
    try:
        return f"{json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()
    except (ValueError, RecursionError):
        # An infinite number, or half a pair of UTF-16.
        raise AgentError(f"{path} has a value that hawse cannot write back: add the entry by hand") from None
