"""Valid heads and bodies, and what becomes of them: bytes flipped, inserted, deleted, doubled, mixed."""

from __future__ import annotations

import random

REQUESTS = [
    b"GET /api/v1/pods?limit=500 HTTP/1.1\r\nHost: hub.example:443\r\nAccept: */*\r\n"
    b"Authorization: Bearer eyJhbGciOiJFZERTQSJ9.e30.c2ln\r\nUser-Agent: kubectl/v1.37.1\r\n\r\n",
    b"POST /x HTTP/1.1\r\nHost: [::1]:8443\r\nContent-Length: 12\r\nContent-Type: application/json\r\n\r\n",
    b"PUT /x?a=%2f HTTP/1.1\r\nhost:a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n",
    b"GET /exec HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: v5.channel.k8s.io\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n",
    b"DELETE / HTTP/1.1\r\nHost: 127.0.0.1\r\nEmpty:\r\nX-A: \t b c \t\r\nX_b: \xc3\xa4\r\n\r\n",
]
RESPONSES = [
    b"HTTP/1.1 200 OK\r\nAudit-Id: 1\r\nContent-Type: a/b;c=d\r\nDate: now\r\nContent-Length: 7\r\n\r\n",
    b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n",
    b"HTTP/1.0 404 Not Found\r\nServer: x\r\nWarning: 299 - \"a\"\r\nWarning: 299 - \"b\"\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"HTTP/1.1 103 \r\nLink: <a>\r\n\r\n",
]  # fmt: skip
CANONICAL = [
    b"GET /api HTTP/1.1\r\naudit-id: e-1\r\nx-forwarded-for: 192.0.2.7\r\naccept: */*\r\n\r\n",
    b"POST / HTTP/1.1\r\nx-forwarded-for: a\r\naudit-id: b\r\ncontent-length: 3\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: a\r\ncontent-length: 3\r\nempty: \r\n\r\n",
]
CHUNKS = [
    b"3\r\nabc\r\n0\r\n\r\n",
    b"1\r\na\r\nA\r\n0123456789\r\n00\r\n\r\nGET",
    b"3;x=1\r\nabc\r\n0\r\nTrailer: x\r\n\r\n",
    b"2 \r\nab\r\n000000001\r\nc\r\n0\r\n\r\n",
]
# Whole messages: what a client sends for one exchange, and what a server does.
CALLS = [
    REQUESTS[0],
    REQUESTS[1] + b"abcdefghijkl",
    REQUESTS[2] + CHUNKS[0],
    REQUESTS[2] + b"1\r\na\r\nA\r\n0123456789\r\n00\r\n\r\n",
    REQUESTS[3],
    b"POST /y HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
    b"PUT /z HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody",
]
ANSWERS = [
    RESPONSES[0] + b"{'a':1}",
    RESPONSES[1] + CHUNKS[0],
    RESPONSES[1] + b"2\r\nab\r\n1\r\nc\r\n0\r\nTrailer: x\r\n\r\n",
    RESPONSES[2] + b"up to the end",
    RESPONSES[3] + b"frames",
    RESPONSES[4] + b"HTTP/1.1 100 Continue\r\n\r\n" + RESPONSES[0] + b"{'a':1}",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc",
]
WORDS = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b":", b": ", b",", b";", b"#", b"/", b"%2f", b"\x00",
    b"\x01", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"\x80", b"\x85", b"\xa0", b"\xff", b"\xc3\xa4", b"0", b"9",
    b"+", b"-", b"_", b"GET", b"CONNECT", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2", b" HTTP/1.1\r\n", b"200",
    b"Host: a\r\n", b"host: b\r\n",
    b"Content-Length: 3\r\n", b"content-length: 0\r\n", b"Content-Length: 999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n", b"transfer-encoding:chunked\r\n", b"Transfer-Encoding: Chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"chunked", b"Upgrade: h2c\r\n", b"Connection: close\r\n",
    b"Expect: 100-Continue\r\n", b"X-A: b\r\n", b" folded\r\n", b"audit-id: x\r\n", b"x-forwarded-for: y\r\n",
    b"[", b"]", b"@", b"*", b"a" * 70, b"9" * 20,
]  # fmt: skip


def mutated(source: random.Random, seeds: list[bytes]) -> bytes:
    """One of the seeds, after a few accidents."""
    data = bytearray(source.choice(seeds))
    for _ in range(source.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        at = source.randrange(len(data) + 1)
        end = min(len(data), at + source.choice((1, 1, 2, 3, 8, 30)))
        match source.randrange(8):
            case 0 if at < len(data):
                data[at] ^= 1 << source.randrange(8)
            case 1 if at < len(data):
                data[at] = source.randrange(256)
            case 2:
                data[at:at] = source.choice(WORDS)
            case 3:
                del data[at:end]
            case 4:
                data[at:at] = data[at:end]
            case 5:
                data[at:end] = source.choice(WORDS)
            case 6:
                lines = bytes(data).split(b"\r\n")
                source.shuffle(lines) if source.random() < 0.1 else lines.insert(
                    source.randrange(len(lines)), source.choice(lines)
                )
                data = bytearray(b"\r\n".join(lines))
            case _:
                other = source.choice(seeds)
                cut = source.randrange(len(other) + 1)
                data = data[:at] + other[cut:]
    return bytes(data)
