"""Reads a configuration's file, and single values that are needed before all of it is checked.

Without cattrs, which costs as much as the rest of a short command's start.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

# Larger files are not read: the fullest configuration has about 2 KB, a bundle of CAs about 200 KB.
FILE_BYTES_MAX = 256 * 1024


def peek(key: str, prefix: str, path: Path | None, environment: Mapping[str, str]) -> object:
    """Return a top-level key's value before the configuration is read; None if not stated.

    The log's format is needed before the first error is logged. `read_stated` validates the value.
    """
    stated = environment.get(f"{prefix}{key.upper()}")
    if stated is not None:
        return stated
    path = stated_file(prefix, path, environment)
    return None if path is None else read_toml(path, []).get(key)


def stated_file(prefix: str, path: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Return the configuration's file: the path, or without one the file that the variable CONFIG names."""
    if path is None and (named := environment.get(f"{prefix}CONFIG")):
        return Path(named)
    return path


def stated_path(value: object, config_file: Path | None) -> Path:
    """Return the path of a value; raises ValueError.

    It is relative to the file that states it, so the working directory does not matter.
    """
    text = stated_text(value)
    if not text or "\x00" in text or "\n" in text:
        raise ValueError("expected the path of a file or folder")
    base = config_file.absolute().parent if config_file is not None else Path.cwd()
    return base / Path(text).expanduser()


def stated_text(value: object, _: object = str) -> str:
    """Return a value that is a string; raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def read_toml(path: Path, faults: list[str]) -> dict[str, object]:
    """Read a file; errors are added to `faults`."""
    try:
        return tomllib.loads(content(path))
    except OSError as error:
        faults.append(f"{path}: cannot be read: {error.strerror}")
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{path}: not TOML: {error}")
    except ValueError as error:
        faults.append(f"{path}: {error}")
    except RecursionError:
        faults.append(f"{path}: nested too deep")
    return {}


def content(path: Path) -> str:
    """The text of a file; raises OSError, and ValueError if it is too large or not UTF-8."""
    with path.open("rb") as file:
        raw = file.read(FILE_BYTES_MAX + 1)
    if len(raw) > FILE_BYTES_MAX:
        raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
    try:
        # Accepts the byte order mark of Windows editors.
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
