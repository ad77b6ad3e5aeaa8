from __future__ import annotations

import pytest

from proxy.exchange.client import ClientConnection
from proxy.exchange.server import ServerConnection
from proxy.exchange.wire import CONNECTION_BYTES, held_bytes
from proxy.message.body import BODY_BYTES_MAX
from tests.tunnel.stream_pairs import handshake, tcp_pair
from tunnel.net.tls import TLSStream


@pytest.mark.parametrize(("unsent", "unframed"), [(100, 100), (300 * 1024, BODY_BYTES_MAX)])
def test_unsent_framed_bytes_count_twice(unsent, unframed):
    class Stalled(TLSStream):
        held_up_bytes = unsent

    stalled = Stalled.__new__(Stalled)
    assert held_bytes(stalled, b"early", framed=False) == CONNECTION_BYTES + 5 + unsent
    assert held_bytes(stalled, b"early", framed=True) == CONNECTION_BYTES + 5 + unsent + unframed


async def test_a_connection_counts_received_bytes_until_they_are_taken():
    there, here = await handshake(await tcp_pair())
    near, far = ServerConnection(here), ClientConnection(there)
    assert far.held_bytes == CONNECTION_BYTES
    # The session tickets wait for the first answer.
    unsent = here.held_up_bytes
    await there.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"early")
    request = await near.next_request()
    assert near.held_bytes == CONNECTION_BYTES + 5 + unsent
    await far.send_request(request)
    await here.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + b"body")
    await far.receive_head()
    assert far.held_bytes == CONNECTION_BYTES + 4
    for end in (near, far):
        await end.aclose()
