"""The public end of a snitun tunnel: `python snitun_hub.py SNI_PORT PEER_PORT FERNET_KEY NAME`, on loopback.

It prints `ready` when it listens, and `joined` once the peer that serves NAME has connected.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop  # type: ignore[import-not-found]
from snitun.server.run import SniTunServer  # type: ignore[import-not-found]

JOINED_POLL_S = 0.01


async def serve(sni_port: int, peer_port: int, fernet_key: str, name: str) -> None:
    """Take clients by the name in their TLS hello, and the one peer that serves the name."""
    server = SniTunServer(
        [fernet_key], sni_port=sni_port, sni_host="127.0.0.1", peer_port=peer_port, peer_host="127.0.0.1"
    )
    await server.start()
    print("ready", flush=True)
    # Not every version can be asked to call when a peer comes.
    while not server.peers.peer_available(name):  # noqa: ASYNC110
        await asyncio.sleep(JOINED_POLL_S)
    print("joined", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
