"""The public end of a snitun tunnel: `python snitun_hub.py SNI_PORT PEER_PORT FERNET_KEY`, on loopback."""

from __future__ import annotations

import asyncio
import sys

import uvloop  # type: ignore[import-not-found]
from snitun.server.run import SniTunServer  # type: ignore[import-not-found]


async def serve(sni_port: int, peer_port: int, fernet_key: str) -> None:
    """Take clients by the name in their TLS hello, and the one peer that serves the name."""
    server = SniTunServer(
        [fernet_key], sni_port=sni_port, sni_host="127.0.0.1", peer_port=peer_port, peer_host="127.0.0.1"
    )
    await server.start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
