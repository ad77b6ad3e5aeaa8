"""A host with two addresses, of which the first is dead: what IPv6 often is where nobody looks after it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def one_that_swallows_and_one_that_answers() -> Iterator[tuple[list[str], int]]:
    """Two addresses of one host: the first answers no SYN, as its listener has no room."""
    with (
        socket.create_server(("127.0.0.2", 0), backlog=0) as full,
        socket.create_server(("127.0.0.1", full.getsockname()[1])),
        ExitStack() as stack,
    ):
        for _ in range(3):
            crowd = stack.enter_context(socket.socket())
            crowd.setblocking(False)
            crowd.connect_ex(full.getsockname())
        yield ["127.0.0.2", "127.0.0.1"], full.getsockname()[1]
