"""The private end of a snitun tunnel: `python snitun_agent.py PEER_PORT FERNET_KEY NAME HOST PORT`.

As Home Assistant runs it, except that the bytes go on to HOST:PORT instead of to a server in the process.
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

import uvloop  # type: ignore[import-not-found]
from snitun.client import client_peer, connector  # type: ignore[import-not-found]
from snitun.utils import server  # type: ignore[import-not-found]


async def serve(peer_port: int, fernet_key: str, name: str, host: str, port: int) -> None:
    """Join the hub as the peer that serves `name`, and carry its clients until the tunnel ends."""
    key, iv = os.urandom(32), os.urandom(16)
    token = server.generate_client_token([fernet_key], timedelta(days=1), name, key, iv)
    # The connector to another address has a name of its own since there is one that needs no address.
    kind = getattr(connector, "EndpointConnector", connector.Connector)
    # The newest protocol has flow control; a client has to say that it speaks it.
    newest = {"protocol_version": server.PROTOCOL_VERSION} if hasattr(server, "PROTOCOL_VERSION") else {}
    peer = client_peer.ClientPeer("127.0.0.1", peer_port)
    await peer.start(kind(host, port), token, key, iv, **newest)
    print("ready", flush=True)
    await peer.wait()


if __name__ == "__main__":
    peer_port, fernet_key, name, host, port = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(peer_port), fernet_key, name, host, int(port)))
