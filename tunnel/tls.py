"""A lean TLS stream: OpenSSL's state machine between two memory buffers, over any trio stream.

Why not trio.SSLStream: it returns one record (16 KiB) a call and passes the scheduler for each, takes two
locks a call, and keeps whatever size its buffers once grew to. This one decrypts all records that a wakeup
brought, takes no lock, and keeps its buffers small. In exchange it is stricter: the handshake is explicit.

Theory of operation. `SSLObject` never waits; it reads ciphertext from one MemoryBIO and writes ciphertext
to another. Between two awaits a task may call it as it likes, and nobody else sees the intermediate state.
Three rules make that safe for one sending and one receiving task without any lock:

1. Only a sender moves bytes from `_outgoing` to the transport, all of them and in their order. A task that
   is cancelled, or fails, while it does so leaves a torn record behind. The stream is broken then.
2. A receiver never sends. It would have to wait for a peer that does not read, and two such peers stop each
   other for good. Reading can make OpenSSL write (the refusal of a renegotiation, the answer to a request for
   the client's certificate); that goes out with the next send, which is early enough: RFC 8446 4.6.3 asks for
   the answer to a key update "prior to sending its next Application Data record". A peer that causes more
   than ANSWERS_BYTES_MAX of it meanwhile is cut off.
3. The exception is the farewell, an alert or close_notify, after which nothing is sent any more. It is tried
   only while nobody sends, and for no longer than FAREWELL_S.

The end of a stream is authenticated: `receive_some` returns b"" only after the peer's close_notify. A
connection that just ends is a truncation, and may be an attack: BrokenResourceError. TLS has no half-close
that all peers understand, so there is no `send_eof`.

Renegotiation (TLS 1.2) is refused by our contexts: it is what makes a *write* need a read.
"""

from __future__ import annotations

import contextlib
import enum
import operator
import re
import ssl
from typing import Final

import trio

__all__ = ["HandshakeFailed", "TLSStream", "describe_ssl_error"]

# The largest plaintext of one record. OpenSSL hands out at most one record a read, and a MemoryBIO keeps
# the largest size it ever had (455 KB after a burst of 200 KB, measured), so this is the measure for
# everything fed to either.
RECORD_BYTES_MAX: Final = 16 * 1024

# How many records are joined into one send. Buffers of 128 KiB and more come from mmap, whose page faults
# cost more than the encryption; six records with their overhead stay well below.
RECORDS_PER_SEND: Final = 6

# How much is asked of the socket at once: enough for a saturated tunnel, below the same threshold.
RECEIVE_BYTES_MAX: Final = 64 * 1024

# Hundreds of answers. OpenSSL would go on collecting them in memory for as long as the peer causes them.
ANSWERS_BYTES_MAX: Final = 16 * 1024

# What OpenSSL and Python put around the reason: `[SSL: WRONG_VERSION_NUMBER] wrong version number
# (_ssl.c:1006)`.
_DECORATION: Final = re.compile(r"^\[[^\]]*\] | \(_ssl\.c:\d+\)$")

# A farewell (close_notify, alert) is a courtesy to the peer. One that does not read gets no more of our time.
FAREWELL_S: Final = 1.0


class HandshakeFailed(trio.BrokenResourceError):
    """The TLS handshake failed; the text is one line that names the reason."""


class _State(enum.Enum):
    NEW = enum.auto()
    OPEN = enum.auto()
    BROKEN = enum.auto()
    CLOSED = enum.auto()


class TLSStream(trio.abc.Stream):
    """A TLS connection over `transport_stream`, which it owns from now on.

    Call `do_handshake` first. One task may send while another receives; a second task in the same direction
    gets BusyResourceError.
    """

    def __init__(
        self,
        transport_stream: trio.abc.Stream,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
    ) -> None:
        self.transport_stream = transport_stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._state = _State.NEW
        self._server_side = server_side
        # The server's session tickets; see do_handshake.
        self._held = b""
        # Decrypted, not yet returned: an offset spares a copy of the rest for each small read.
        self._unread = b""
        self._unread_from = 0
        self._ended = False
        self._failure: str | None = None
        self._sending = False
        self._receiving = False

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """OpenSSL's view of the connection: its certificate, version, ALPN; never for reading or writing."""
        return self._ssl

    async def do_handshake(self) -> None:
        """Agree on keys with the peer, and verify its certificate if the context says so.

        Raises HandshakeFailed. The stream is of no use after that, or when this is cancelled; it still has
        to be closed.
        """
        assert self._state is _State.NEW, "do_handshake is called once"
        self._state = _State.BROKEN
        try:
            while not self._advance_handshake():
                if self._outgoing.pending:
                    await self.transport_stream.send_all(self._outgoing.read())
                data = await self.transport_stream.receive_some(RECORD_BYTES_MAX)
                if not data:
                    raise HandshakeFailed("the peer closed the connection during the TLS handshake")
                self._incoming.write(data)
            # OpenSSL has written session tickets as well on a server. A client need not be reading now, so
            # that sending them here can deadlock both sides (openssl/openssl#7967); they go in front of our
            # first data.
            if self._server_side and self._ssl.version() == "TLSv1.3":
                self._held = self._outgoing.read()
                await trio.lowlevel.checkpoint()
            else:
                await self.transport_stream.send_all(self._outgoing.read())
        except HandshakeFailed:
            # The alert tells the peer's operator what we did not like, such as an unknown CA.
            with trio.move_on_after(FAREWELL_S, shield=True):
                await self._send_farewell()
            raise
        except trio.BrokenResourceError as exc:
            raise HandshakeFailed("the peer cut the connection during the TLS handshake") from exc
        self._state = _State.OPEN

    def _advance_handshake(self) -> bool:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except (ssl.SSLError, ssl.CertificateError) as exc:
            raise HandshakeFailed(describe_ssl_error(exc)) from exc
        return True

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return all that has come so far, at most `max_bytes`; b"" after the peer's close_notify.

        Raises trio.BrokenResourceError when the connection breaks or ends without a close_notify, after all
        that came before. Nothing is lost when it is cancelled.
        """
        if max_bytes is not None and operator.index(max_bytes) < 1:
            raise ValueError(f"max_bytes is {max_bytes}, it must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving from this TLS stream")
        self._receiving = True
        try:
            return await self._receive(max_bytes)
        finally:
            self._receiving = False

    async def _receive(self, max_bytes: int | None) -> bytes:
        waited = False
        if self._state is _State.CLOSED:
            self._check_open()
        while not self._unread and not self._ended:
            self._check_open()
            # Only the handshake leaves ciphertext behind, when our peer's first data came with its last
            # flight.
            if self._incoming.pending:
                self._unread = self._decrypt(b"")
            else:
                ciphertext = await self.transport_stream.receive_some(RECEIVE_BYTES_MAX)
                waited = True
                self._check_open()
                if not ciphertext:
                    self._incoming.write_eof()
                self._unread = self._decrypt(ciphertext)
                if self._outgoing.pending > ANSWERS_BYTES_MAX:
                    self._break("the peer causes answers without end")
            if self._failure is not None:
                # The alert, which names the fault.
                await self._send_farewell()
        if not waited:
            await trio.lowlevel.checkpoint()
        return self._take_unread(max_bytes)

    def _decrypt(self, ciphertext: bytes | bytearray) -> bytes:
        parts: list[bytes] = []
        if len(ciphertext) <= RECORD_BYTES_MAX:
            if ciphertext:
                self._incoming.write(ciphertext)
            self._decrypt_records(parts)
        else:
            view = memoryview(ciphertext)
            for start in range(0, len(view), RECORD_BYTES_MAX):
                self._incoming.write(view[start : start + RECORD_BYTES_MAX])
                self._decrypt_records(parts)
                if self._ended or self._failure is not None:
                    break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _decrypt_records(self, parts: list[bytes]) -> None:
        """Append the plaintext of all whole records in `_incoming`, and note an end of the stream."""
        incoming, read = self._incoming, self._ssl.read
        try:
            while True:
                part = read(RECORD_BYTES_MAX)
                if not part:
                    self._ended = True
                    return
                parts.append(part)
                if not incoming.pending:
                    # One exception less for each wakeup whose last record is whole.
                    return
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as exc:
            # What came before the fault is still good, and is delivered first.
            self._break(describe_ssl_error(exc))

    def _take_unread(self, max_bytes: int | None) -> bytes:
        start = self._unread_from
        if max_bytes is None or len(self._unread) - start <= max_bytes:
            data = self._unread[start:] if start else self._unread
            self._unread = b""
            self._unread_from = 0
        else:
            data = self._unread[start : start + max_bytes]
            self._unread_from = start + max_bytes
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send all of `data`.

        Raises trio.BrokenResourceError when the connection is broken. When cancelled, the stream is broken as
        well, because an unknown part of the data is on its way.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this TLS stream")
        self._sending = True
        try:
            self._check_open()
            if data:
                await self._encrypt_and_send(memoryview(data).cast("B"))
            else:
                await trio.lowlevel.checkpoint()
        finally:
            self._sending = False

    async def _encrypt_and_send(self, data: memoryview) -> None:
        write, outgoing = self._ssl.write, self._outgoing
        size = len(data)
        start = 0
        while start < size:
            parts = [self._held] if self._held else []
            self._held = b""
            batch_end = min(start + RECORDS_PER_SEND * RECORD_BYTES_MAX, size)
            try:
                while start < batch_end:
                    start += write(data[start : min(start + RECORD_BYTES_MAX, batch_end)])
                    parts.append(outgoing.read())
            except ssl.SSLError as exc:
                self._break(describe_ssl_error(exc))
                raise trio.BrokenResourceError(self._failure) from exc
            await self._transmit(parts[0] if len(parts) == 1 else b"".join(parts))

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes more."""
        if self._sending:
            raise trio.BusyResourceError("another task is already sending on this TLS stream")
        self._sending = True
        try:
            self._check_open()
            await self.transport_stream.wait_send_all_might_not_block()
        finally:
            self._sending = False

    async def aclose(self) -> None:
        """Say close_notify if that is possible within FAREWELL_S, and close the transport.

        It does not wait for the peer's close_notify: the peer may be waiting for us to read. When another
        task is in the middle of a send, or when this is cancelled, the transport is closed without the
        farewell.
        """
        if self._state is _State.CLOSED:
            await trio.lowlevel.checkpoint()
            return
        was_open = self._state is _State.OPEN
        self._state = _State.CLOSED
        try:
            if was_open:
                # unwrap() writes our close_notify, and then complains that the peer's has not come.
                with contextlib.suppress(ssl.SSLError):
                    self._ssl.unwrap()
                await self._send_farewell()
        finally:
            await self.transport_stream.aclose()

    async def _send_farewell(self) -> None:
        if self._sending:
            return
        farewell = self._held + self._outgoing.read()
        with trio.move_on_after(FAREWELL_S):
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.transport_stream.send_all(farewell)

    async def _transmit(self, ciphertext: bytes) -> None:
        try:
            await self.transport_stream.send_all(ciphertext)
        except BaseException:
            # Also when cancelled: some unknown part of a record has gone out.
            self._break("an earlier send failed or was cancelled")
            raise

    def _break(self, failure: str) -> None:
        if self._state is _State.OPEN:
            self._state = _State.BROKEN
            self._failure = failure

    def _check_open(self) -> None:
        if self._state is _State.OPEN:
            return
        if self._state is _State.CLOSED:
            raise trio.ClosedResourceError("this TLS stream was closed before")
        assert self._state is _State.BROKEN, "do_handshake comes first"
        raise trio.BrokenResourceError(self._failure or "the TLS handshake did not succeed")


def describe_ssl_error(exc: ssl.SSLError | ssl.CertificateError) -> str:
    """Return one line without OpenSSL's file names and numbers."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not accepted: {exc.verify_message}"
    text = _DECORATION.sub("", str(exc.args[-1]))
    if isinstance(exc, ssl.SSLEOFError) or "unexpected eof" in text.lower():
        return "the connection ended without a TLS close_notify"
    return f"TLS failed: {text}"
