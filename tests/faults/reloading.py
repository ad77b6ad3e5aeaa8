"""Makes hubs read the whole directory again and again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.faults.postgres import FaultyPostgres

RELOAD_EVERY_S = 1.0
# A row of all agents: then a hub reads everything.
TOUCH_ALL = (
    "UPDATE directory SET version = version + 1, nonce = md5(random()::text)",
    "UPDATE teams SET created_at = created_at",
    "SELECT pg_notify('hawse', version::text) FROM directory",
)


@contextmanager
def reloading(server: FaultyPostgres) -> Iterator[None]:
    """Make each hub read the whole directory again and again, for the block."""
    stopping = threading.Event()

    def touch() -> None:
        while not stopping.wait(RELOAD_EVERY_S):
            server.execute(*TOUCH_ALL)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
