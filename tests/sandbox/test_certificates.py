from __future__ import annotations

import ssl

import pytest
import trio
from trio.testing import memory_stream_pair

from sandbox import certificates


@pytest.mark.parametrize(
    ("host", "name"), [("127.0.0.1", "localhost"), ("127.0.0.1", "127.0.0.1"), ("box.test", "box.test")]
)
async def test_a_client_that_trusts_the_ca_trusts_the_server(host: str, name: str) -> None:
    ca_pem, context = certificates.make(host)
    trusting = ssl.create_default_context(cadata=ca_pem.decode())
    trusting.verify_flags |= ssl.VERIFY_X509_STRICT
    client, server = memory_stream_pair()
    ours = trio.SSLStream(server, context, server_side=True)
    theirs = trio.SSLStream(client, trusting, server_hostname=name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.do_handshake)
        nursery.start_soon(theirs.do_handshake)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.aclose)
        nursery.start_soon(theirs.aclose)
