"""What a full TLS handshake costs a server in OpenSSL alone: the floor of a new connection.

    python -m benchmarks.units.connection

Both ends are in memory, and only the server's calls are timed, from its first to the end of the handshake.
The lines compare kinds of certificates and numbers of session tickets. The rest of a new connection is the
kernel's and ours: `python -m benchmarks connections` measures all of it beside nginx, and `make bench-calls`
counts its function calls.
"""

from __future__ import annotations

import ssl
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trustme

from benchmarks.units.timing import report
from tunnel.net.connect import server_context

HANDSHAKES = 200
TICKETS = (2, 1, 0)


def handshake_us(server: ssl.SSLContext, client: ssl.SSLContext) -> float:
    """CPU µs of the server in one handshake."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    far = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    spent_ns = 0

    def timed(step: Callable[[], object]) -> None:
        nonlocal spent_ns
        began_ns = time.thread_time_ns()
        with suppress(ssl.SSLWantReadError):
            step()
        spent_ns += time.thread_time_ns() - began_ns

    with suppress(ssl.SSLWantReadError):
        far.do_handshake()
    began_ns = time.thread_time_ns()
    near = server.wrap_bio(to_server, to_client, server_side=True)
    spent_ns += time.thread_time_ns() - began_ns
    timed(near.do_handshake)
    far.do_handshake()
    timed(near.do_handshake)
    return spent_ns / 1e3


def main() -> None:
    """Print a line for each kind of certificate and number of tickets."""
    for kind in (trustme.KeyType.ECDSA, trustme.KeyType.RSA):
        authority = trustme.CA(key_type=kind)
        leaf = authority.issue_cert("localhost", key_type=kind)
        with tempfile.TemporaryDirectory() as name:
            chain, key = Path(name, "server.pem"), Path(name, "server.key")
            chain.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
            key.write_bytes(leaf.private_key_pem.bytes())
            client = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
            server = server_context(chain, key)
        for tickets in TICKETS:
            server.num_tickets = tickets
            runs = [handshake_us(server, client) for _ in range(HANDSHAKES)]
            report(f"{kind.name}, {tickets} tickets", runs)


if __name__ == "__main__":
    main()
