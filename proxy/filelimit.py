"""How many files the process may have open: each watch and exec is a connection of its own."""

from __future__ import annotations

import logging
import resource

_log = logging.getLogger("hawse")


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one, as far as the system lets us.

    The soft one is 1024 by default for the sake of programs that call select(2), as neither the hub nor the
    relay does.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        _log.debug("the limit of open files stays as it is: %s", error)
