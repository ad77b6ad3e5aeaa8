"""The admin listener's connections, before anybody has shown a token."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio
import trustme
from starlette.applications import Starlette
from trio.testing import wait_all_tasks_blocked

from proxy.hub.adminfront import AdminFront
from proxy.hub.certificate import Certificate
from proxy.hub.config import HubConfig, TLSConfig
from proxy.hub.datadir import DataDir
from tunnel.net import client_context, wrap_client


async def test_connections_that_say_nothing_keep_no_operator_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.hub.adminfront.CONNECTIONS_MAX", 2)
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    files = TLSConfig(tmp_path / "hub.pem", tmp_path / "hub.key")
    assert files.certificate is not None
    assert files.key is not None
    files.key.write_bytes(leaf.private_key_pem.bytes())
    files.certificate.write_bytes(leaf.cert_chain_pems[0].bytes())
    config = HubConfig(tls=files, data_dir=tmp_path)
    front = AdminFront(Starlette(), Certificate.open(config, DataDir(tmp_path), time.time))
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, front.handle_client, [listener])
        port = listener.socket.getsockname()[1]
        silent = []
        for _ in range(2):
            silent.append(await trio.open_tcp_stream("127.0.0.1", port))
            await wait_all_tasks_blocked()
        context = client_context(authority.cert_pem.bytes().decode())
        tcp = await trio.open_tcp_stream("127.0.0.1", port)
        operator = await wrap_client(tcp, context, server_hostname="localhost")
        await operator.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await operator.receive_some()).startswith(b"HTTP/1.1 404 ")
        # The oldest has made room, and no other: that one is answered.
        assert await silent[0].receive_some() == b""
        second = await wrap_client(silent[1], context, server_hostname="localhost")
        for stream in (silent[0], operator, second):
            await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()
