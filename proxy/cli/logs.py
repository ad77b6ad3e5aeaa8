"""How the long-running commands log: a line an event on stderr, for a person and for a collector alike."""

from __future__ import annotations

import logging
import sys
import time


def configure_logging(*, verbose: bool) -> None:
    """Log to stderr from now on: RFC 3339 time in UTC, level, logger, text."""
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)-7s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    # Of interest to its own authors.
    logging.getLogger("alembic").setLevel(logging.WARNING)
