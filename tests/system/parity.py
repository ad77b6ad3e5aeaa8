"""What the comparisons of through with straight have in common."""

from __future__ import annotations

import functools
import re
import socket
import threading

import pytest

from tests.system.world import WAYS

STREAMING = [
    pytest.param(way, spdy, id=f"{way}-{'spdy' if spdy else 'ws'}") for way in WAYS for spdy in (False, True)
]
ECHO_DEADLINE_S = 60.0


def ageless(output: bytes) -> bytes:
    """Without ages (`12s`, `2m5s`), which tick between one command and the next.

    A column is as wide as the longest of them, so the spaces behind an age and behind its heading go as well.
    """
    without = re.sub(rb" +([0-9]+[dhm])*[0-9]+[dhms]\b *", b" AGE ", output)
    return re.sub(rb"(\bAGE|\bAge|----) +", rb"\1 ", without)


def echoed_by(port: int, content: bytes) -> bytes:
    """What a loopback port sends back of `content`, sent while it is received."""
    with socket.create_connection(("127.0.0.1", port), timeout=ECHO_DEADLINE_S) as client:

        def send() -> None:
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = b"".join(iter(functools.partial(client.recv, 65536), b""))
        sender.join()
    return received
