"""A prober of the relay's health port."""

from __future__ import annotations

import trio


async def probe(port: int, path: str, method: str = "GET") -> bytes:
    """Send one request and return the raw answer."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(f"{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        try:
            while data := await stream.receive_some():
                answer += bytes(data)
        except trio.BrokenResourceError:
            pass
    return answer
