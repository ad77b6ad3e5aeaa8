"""Where the hub's data folder is, for commands that need no more of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from proxy.process.stated import peek, stated_file, stated_path

ENVIRONMENT_PREFIX = "HAWSE_HUB_"


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """The default data folder: `hawse/hub` under the XDG data home."""
    home = environment.get("XDG_DATA_HOME", "")
    # The specification: "All paths set in these environment variables must be absolute", else ignored.
    base = Path(home) if home.startswith("/") else Path(environment.get("HOME", "/root")) / ".local" / "share"
    return base / "hawse" / "hub"


def stated_data_dir(path: Path | None, environment: Mapping[str, str]) -> Path | None:
    """Return the data folder that the file or the environment states, or the default if neither is there.

    None if that takes the whole configuration, checked: a misspelt key must not lead to the default folder,
    and so to another hub.
    """
    stated = peek("data_dir", ENVIRONMENT_PREFIX, path, environment)
    file = stated_file(ENVIRONMENT_PREFIX, path, environment)
    if stated is None:
        settings = any(name.startswith(ENVIRONMENT_PREFIX) for name in environment)
        return None if file is not None or settings else default_data_dir(environment)
    try:
        return stated_path(stated, file)
    except ValueError:
        return None
