"""Raises the limit of open files: each watch and exec is a connection of its own."""

from __future__ import annotations

import logging
import resource

# For macOS: its hard limit is unlimited, but it accepts no higher soft limit than this.
OPEN_MAX = 10240

_log = logging.getLogger("hawse")


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one, as far as the system allows.

    The soft limit is 1024 by default for programs that call select(2). Neither the hub nor the relay does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, max(soft, OPEN_MAX)):
        if wanted == soft:
            return
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            _log.debug("cannot raise the limit of open files to %d: %s", wanted, error)
        else:
            return
