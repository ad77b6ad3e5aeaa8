"""SPDY/3.1 frames, as Kubernetes clients use them: converts bytes to events and back, without any I/O.

This implements only what moby/spdystream does, since every client and server of the Kubernetes streaming
protocols is built on that. In particular it has no flow control: it sends no WINDOW_UPDATE, ignores received
ones, and sends DATA without a window. Only the connection's own backpressure slows a sender down. So a reader
that waits for the consumer of one stream blocks all streams of its connection.

The codec has no roles and no stream states. It has the two zlib contexts of the header blocks. So every
header block must pass through it, even in frames that are ignored.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping

import attrs

VERSION = 3
# The format permits control frames of 16 MiB; a SYN_STREAM of Kubernetes has about 100 bytes.
CONTROL_BYTES_MAX = 64 * 1024
HEADER_BLOCK_BYTES_MAX = 256 * 1024
STREAM_ID_MAX = 0x7FFFFFFF
DATA_BYTES_MAX = 0xFFFFFF

SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FLAG_FIN = 0x01

PROTOCOL_ERROR, CANCEL = 1, 5

# The dictionary of the header compression (draft 3, section 2.6.10.1): these words, each after its length,
# and then the verbatim text.
_WORDS = """
options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age
allow authorization cache-control connection content-base content-encoding content-language content-length
content-location content-md5 content-range content-type date etag expect expires from host if-match
if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma
proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade
user-agent vary via warning www-authenticate method get status 200~OK version HTTP/1.1 url public set-cookie
keep-alive origin
"""
_TEXT = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(struct.pack("!I", len(word)) + word.replace("~", " ").encode("ascii") for word in _WORDS.split())
    + _TEXT.encode()
)


class SpdyError(Exception):
    """The peer sent invalid SPDY/3.1; the connection cannot continue."""


@attrs.frozen
class StreamOpened:
    """SYN_STREAM: the peer opens a stream; `fin` if it will send nothing on it."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


@attrs.frozen
class StreamReplied:
    """SYN_REPLY: the peer accepts a stream of ours."""

    stream_id: int
    headers: Mapping[str, str]
    fin: bool = False


@attrs.frozen
class DataReceived:
    """A piece of a DATA frame; `fin` only on the last piece of the stream's last frame."""

    stream_id: int
    data: bytes
    fin: bool = False


@attrs.frozen
class StreamReset:
    """RST_STREAM: both halves of a stream are over."""

    stream_id: int
    status: int


@attrs.frozen
class PingReceived:
    """PING: to be echoed, unless its number is one of ours."""

    ping_id: int


@attrs.frozen
class GoneAway:
    """GOAWAY: the peer closes the connection."""

    last_stream_id: int
    status: int


Event = StreamOpened | StreamReplied | DataReceived | StreamReset | PingReceived | GoneAway


class Codec:
    """Encodes and decodes the frames of one connection."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        # The remaining bytes of the DATA frame that is being read.
        self._data_left = 0
        self._data_stream = 0
        self._data_fin = False
        self._compressor = zlib.compressobj(zlib.Z_BEST_COMPRESSION, zdict=DICTIONARY)
        self._decompressor = zlib.decompressobj(zdict=DICTIONARY)

    def receive(self, data: bytes) -> Iterator[Event]:
        """Take bytes and yield the events that they complete; raises SpdyError. Consume it to its end.

        DATA is passed on in pieces, without waiting for the whole frame: a frame may have 16 MiB.
        """
        if self._data_left and not self._buffer:
            # The fast path of bulk data: the chunk is the event's data without a copy.
            if len(data) <= self._data_left:
                yield self._data_event(data)
                return
            piece = data[: self._data_left]
            data = data[self._data_left :]
            yield self._data_event(piece)
        self._buffer += data
        while True:
            if self._data_left:
                if not self._buffer:
                    return
                piece = bytes(self._buffer[: self._data_left])
                del self._buffer[: len(piece)]
                yield self._data_event(piece)
                continue
            if len(self._buffer) < 8:
                return
            first, second = struct.unpack_from("!II", self._buffer)
            flags, length = second >> 24, second & 0xFFFFFF
            if not first & 0x80000000:
                del self._buffer[:8]
                self._data_stream, self._data_left = first, length
                self._data_fin = bool(flags & FLAG_FIN)
                if length == 0:
                    yield DataReceived(first, b"", self._data_fin)
                continue
            version, kind = first >> 16 & 0x7FFF, first & 0xFFFF
            if version != VERSION:
                raise SpdyError(f"control frame of version {version}")
            if length > CONTROL_BYTES_MAX:
                raise SpdyError(f"control frame of {length} bytes exceeds the limit of {CONTROL_BYTES_MAX}")
            if len(self._buffer) < 8 + length:
                return
            body = bytes(self._buffer[8 : 8 + length])
            del self._buffer[: 8 + length]
            event = self._control_event(kind, flags, body)
            if event is not None:
                yield event

    def _data_event(self, piece: bytes) -> DataReceived:
        self._data_left -= len(piece)
        return DataReceived(self._data_stream, piece, self._data_fin and self._data_left == 0)

    def _control_event(self, kind: int, flags: int, body: bytes) -> Event | None:
        fin = bool(flags & FLAG_FIN)
        try:
            if kind == SYN_STREAM:
                (stream_id,) = struct.unpack_from("!I", body)
                return StreamOpened(stream_id & STREAM_ID_MAX, self._headers(body[10:]), fin)
            if kind == SYN_REPLY:
                (stream_id,) = struct.unpack_from("!I", body)
                return StreamReplied(stream_id & STREAM_ID_MAX, self._headers(body[4:]), fin)
            if kind == HEADERS:
                self._headers(body[4:])  # for the zlib context; Kubernetes ignores their contents
                return None
            if kind == RST_STREAM:
                stream_id, status = struct.unpack("!II", body)
                return StreamReset(stream_id & STREAM_ID_MAX, status)
            if kind == PING:
                (ping_id,) = struct.unpack("!I", body)
                return PingReceived(ping_id)
            if kind == GOAWAY:
                last, status = struct.unpack("!II", body)
                return GoneAway(last & STREAM_ID_MAX, status)
        except struct.error as exc:
            raise SpdyError(f"control frame {kind} has a wrong length: {len(body)} bytes") from exc
        if kind in (SETTINGS, WINDOW_UPDATE):
            return None
        raise SpdyError(f"control frame of the unknown type {kind}")

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._decompressor.decompress(block, HEADER_BLOCK_BYTES_MAX)
        except zlib.error as exc:
            raise SpdyError(f"header block cannot be decompressed: {exc}") from exc
        if self._decompressor.unconsumed_tail:
            raise SpdyError(f"header block exceeds the limit of {HEADER_BLOCK_BYTES_MAX} bytes")
        strings: list[str] = []
        try:
            (count,) = struct.unpack_from("!I", plain)
            at = 4
            for _ in range(2 * count):
                (length,) = struct.unpack_from("!I", plain, at)
                strings.append(plain[at + 4 : at + 4 + length].decode("latin-1"))
                at += 4 + length
        except struct.error as exc:
            raise SpdyError("header block ends within a header") from exc
        if at != len(plain):
            raise SpdyError("header block has another length than its headers")
        names = strings[::2]
        if len(set(names)) != len(names) or any(name != name.lower() or not name for name in names):
            raise SpdyError("header block with empty, repeated or upper-case names")
        return dict(zip(names, strings[1::2], strict=True))

    # Sending.

    def syn_stream(self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False) -> bytes:
        """Return the frame that opens a stream."""
        # No associated stream, priority 0, slot 0.
        return _control(SYN_STREAM, struct.pack("!IIH", stream_id, 0, 0) + self._block(headers), fin)

    def syn_reply(self, stream_id: int, headers: Mapping[str, str], *, fin: bool = False) -> bytes:
        """Return the frame that accepts a stream."""
        return _control(SYN_REPLY, struct.pack("!I", stream_id) + self._block(headers), fin)

    def _block(self, headers: Mapping[str, str]) -> bytes:
        plain = [struct.pack("!I", len(headers))]
        for name, value in headers.items():
            for text in (name.encode("latin-1"), value.encode("latin-1")):
                plain += [struct.pack("!I", len(text)), text]
        return self._compressor.compress(b"".join(plain)) + self._compressor.flush(zlib.Z_SYNC_FLUSH)


def _control(kind: int, body: bytes, fin: bool = False) -> bytes:
    return struct.pack("!HHI", 0x8000 | VERSION, kind, fin << 24 | len(body)) + body


def data(stream_id: int, payload: bytes, *, fin: bool = False) -> bytes:
    """Return a DATA frame."""
    assert len(payload) <= DATA_BYTES_MAX
    return struct.pack("!II", stream_id, fin << 24 | len(payload)) + payload


def rst_stream(stream_id: int, status: int) -> bytes:
    """Return the frame that ends both halves of a stream."""
    return _control(RST_STREAM, struct.pack("!II", stream_id, status))


def ping(ping_id: int) -> bytes:
    """Return a PING, or the answer to one."""
    return _control(PING, struct.pack("!I", ping_id))


def goaway(last_stream_id: int, status: int = 0) -> bytes:
    """Return the frame that ends the connection."""
    return _control(GOAWAY, struct.pack("!II", last_stream_id, status))
