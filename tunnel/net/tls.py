"""A lean TLS stream: OpenSSL's state machine between two memory buffers, over any trio stream.

Why not trio.SSLStream: it returns one record (16 KiB) a call and passes the scheduler for each, takes two
locks a call, and never shrinks its buffers. This one decrypts all records that a wakeup
brought, takes no lock, keeps its buffers small, and passes the scheduler only where its transport does (see
tunnel.net.tcp) and when it returns what was there before. In exchange it is stricter: the handshake is
explicit.

Theory of operation. `SSLObject` never waits; it reads ciphertext from one MemoryBIO and writes ciphertext
to another. Between two awaits a task may call it as it likes, and no other task sees the intermediate state.
So the two buffers need not be each stream's own: all streams of a thread share them, and a task that calls
OpenSSL leaves both empty before he waits. What is not a whole record yet stays outside, and so does what is
not sent yet. A call that cannot leave them so breaks its own stream: the next one must not find anything.
Three rules make that safe for one sending and one receiving task without any lock:

1. Only a sender moves bytes to the transport, all of them and in their order. A task that is cancelled, or
   fails, while it does so leaves a torn record behind. Nothing can be sent then any more; but what the peer
   has said is still received, since it may say why it takes nothing (an answer to an upload that was not
   wanted, the status of a command that has ended).
2. A receiver never sends. It would have to wait for a peer that does not read, and two such peers stop each
   other for good. Reading can make OpenSSL write (the refusal of a renegotiation, the answer to a request for
   the client's certificate); that goes out with the next send, which is early enough: RFC 8446 4.6.3 asks for
   the answer to a key update "prior to sending its next Application Data record". A peer that causes more
   than ANSWERS_BYTES_MAX of it meanwhile is cut off.
3. The exception is the farewell, an alert or close_notify, after which nothing is sent any more. It is tried
   only while no task sends, and for no longer than FAREWELL_S.

The end of a stream is authenticated: `receive_some` returns b"" only after the peer's close_notify. A
connection that just ends is a truncation, and may be an attack: BrokenResourceError. TLS has no half-close
that all peers understand, so there is no `send_eof`; `send_close_notify` is for a task that is about to
close.

Renegotiation (TLS 1.2) is refused by our contexts: it is what makes a *write* need a read.
"""

from __future__ import annotations

import contextlib
import enum
import operator
import re
import ssl
import threading
from collections.abc import Callable
from typing import Final

import trio

from tunnel.net.fairness import fairness
from tunnel.net.issuer import shown_issuer
from tunnel.net.tcp import TCPStream
from tunnel.net.tls_sessions import Resumption

__all__ = ["HandshakeFailed", "TLSStream"]

# The largest plaintext of one record. OpenSSL hands out at most one record a read, and a MemoryBIO keeps
# the largest size it ever had (455 KB after a burst of 200 KB, measured), so this is the measure for
# everything fed to either. One of each stream's own would keep 4 KB of the handshake alone.
RECORD_BYTES_MAX: Final = 16 * 1024

# How much is encrypted into one send. Buffers of 128 KiB and more come from mmap, whose page faults cost more
# than the encryption; six records with their overhead stay well below.
SEND_BYTES_MAX: Final = 6 * RECORD_BYTES_MAX

# How much is asked of the socket at once: half of the largest message of a tunnel. Less costs a call more for
# the same bytes. Our processes have malloc keep such buffers (tunnel.net.malloc).
RECEIVE_BYTES_MAX: Final = 128 * 1024

# Each record costs some 2 µs, and 128 KiB can hold 5,700, which is how long all other tasks would wait.
# After so many, of so few bytes on the average, less is asked of the socket, and not before its turn.
CROWDED_RECORDS: Final = 64
CROWDED_RECORD_BYTES: Final = 128
CROWDED_BYTES_MAX: Final = 8 * 1024

# In front of each record: its type, a version, and the length of what follows. That is at most 256 bytes
# more than its plaintext (RFC 8446 5.2), in TLS 1.2 at most 2048 (RFC 5246 6.2.3); OpenSSL judges, this only
# bounds what is collected before it does.
RECORD_HEADER_BYTES: Final = 5
RECORD_PAYLOAD_BYTES_MAX: Final = RECORD_BYTES_MAX + 2048

# Hundreds of answers. OpenSSL would go on collecting them in memory for as long as the peer causes them.
ANSWERS_BYTES_MAX: Final = 16 * 1024

# What OpenSSL and Python put around the reason: `[SSL: WRONG_VERSION_NUMBER] wrong version number
# (_ssl.c:1006)`.
_DECORATION: Final = re.compile(r"^\[[^\]]*\] | \(_ssl\.c:\d+\)$")

# A farewell (close_notify, alert) is a courtesy to the peer. One that does not read gets no more of our time.
FAREWELL_S: Final = 1.0


class HandshakeFailed(trio.BrokenResourceError):
    """The TLS handshake failed; the text is one line that names the reason."""

    issuer: str = ""
    """The issuer of the peer's certificate, if that was not accepted; see tunnel.net.issuer."""


class _State(enum.Enum):
    NEW = enum.auto()
    OPEN = enum.auto()
    BROKEN = enum.auto()
    CLOSED = enum.auto()


# A lookup less for every call.
_OPEN: Final[_State] = _State.OPEN

# Is being sent for ever once a record is torn: nothing may be sent behind it, not even a close_notify.
_TORN: Final = bytearray()

# The fairness key of handshakes: the peer is known only after them.
_STRANGERS: Final = "strangers"


class _Buffers(threading.local):
    """Where OpenSSL reads and writes ciphertext, for all streams of a thread; empty while none is at work."""

    def __init__(self) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()


_buffers: Final = _Buffers()


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
        resumption: Resumption | None = None,
    ) -> None:
        self.transport_stream = transport_stream
        self._incoming = _buffers.incoming
        self._outgoing = _buffers.outgoing
        self._ssl = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._resumption = resumption
        if resumption is not None:
            resumption.prepare(self._ssl)
        self._state = _State.NEW
        self._server_side = server_side
        # Ciphertext that goes in front of the next: the server's session tickets (see do_handshake), what the
        # kernel did not take in send_nowait, and what reading has caused, of which the size is kept as well.
        self._held = b""
        self._answers_bytes = 0
        # The beginning of a record that is not whole, and how much is missing, once its header is here.
        self._torn = b""
        self._missing = 0
        # Decrypted, not yet returned: an offset spares a copy of the rest for each small read.
        self._unread = b""
        self._unread_from = 0
        self.ended = False
        """The peer has said close_notify: nothing comes behind what was received."""
        self._failure: str | None = None
        # What a send that is under way was given.
        self._sending: bytes | bytearray | memoryview | None = None
        self._receiving = False
        # What was received last was very many small records.
        self._crowded = False

    @property
    def ssl_object(self) -> ssl.SSLObject:
        """OpenSSL's view of the connection: its certificate, version, ALPN; never for reading or writing."""
        return self._ssl

    @property
    def has_unread(self) -> bool:
        """Whether bytes, or the peer's end, can be received without the transport."""
        return bool(self._unread) or self.ended

    @property
    def held_up_bytes(self) -> int:
        """What is here until the peer takes it: what a send was given, and what of that is encrypted."""
        data = self._sending
        if data is None:
            return len(self._held)
        return len(data) + min(len(data), SEND_BYTES_MAX) + len(self._held)

    async def do_handshake(self, on_hello: Callable[[], None] | None = None) -> None:
        """Agree on keys with the peer, and verify its certificate if the context says so.

        On a server `on_hello` is called when a whole hello of the client has come. Raises HandshakeFailed.
        The stream is of no use after that, or when this is cancelled; it still has to be closed.
        """
        assert self._state is _State.NEW, "do_handshake is called once"
        assert self._incoming is _buffers.incoming, "a stream stays in the thread that it was made in"
        self._state = _State.BROKEN
        common = fairness()
        try:
            # A server sends nothing before the client's hello.
            waits = self._server_side
            while waits or not self._advance_handshake():
                waits = False
                if self._outgoing.pending:
                    # OpenSSL answers a hello, and nothing that comes before.
                    if on_hello is not None:
                        on_hello()
                    await self.transport_stream.send_all(self._outgoing.read())
                data = await self.transport_stream.receive_some(RECORD_BYTES_MAX)
                if not data:
                    raise HandshakeFailed("the peer closed the connection during the TLS handshake")
                # Hundreds of handshakes can receive bytes at the same moment.
                if not common.admits():
                    await common.wait(_STRANGERS)
                self._incoming.write(data)
            # The peer's first data may have come with its last flight.
            early = self._incoming.read()
            # OpenSSL has written session tickets as well on a server. A client need not be reading now, so
            # that sending them here can deadlock both sides (openssl/openssl#7967); they go in front of our
            # first data.
            if self._server_side and self._ssl.version() == "TLSv1.3":
                self._held = self._outgoing.read()
            else:
                await self.transport_stream.send_all(self._outgoing.read())
        except HandshakeFailed:
            # The alert tells the peer's operator what we did not like, such as an unknown CA.
            with trio.move_on_after(FAREWELL_S, shield=True):
                await self._send_farewell()
            raise
        except trio.BrokenResourceError as exc:
            raise HandshakeFailed("the peer cut the connection during the TLS handshake") from exc
        except BaseException:
            self._give_up()
            raise
        self._state = _State.OPEN
        if self._resumption is not None:
            self._resumption.opened(self._ssl)
        if early:
            self._unread = self._take_in(early)

    def _advance_handshake(self) -> bool:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except (ssl.SSLError, ssl.CertificateError) as exc:
            self._incoming.read()
            self._hold_answer()
            failed = HandshakeFailed(_describe(exc))
            if isinstance(exc, ssl.SSLCertVerificationError):
                failed.issuer = shown_issuer(self._ssl)
            try:
                raise failed from exc
            finally:
                # Its traceback holds this frame, which must not hold it in turn: until a garbage collection
                # the stream would live on, with OpenSSL's buffers, and any peer can fail in a handshake.
                del failed
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
        if self._unread or self.ended or self._state is not _OPEN:
            return await self._receive_kept(max_bytes)
        self._receiving = True
        at_once = RECEIVE_BYTES_MAX
        try:
            data = b""
            while not data and not self.ended:
                if self._crowded:
                    # Each loop pass serves one peer that sends such records, however many do.
                    await fairness().wait_alone()
                    self._crowded = False
                    at_once = CROWDED_BYTES_MAX
                ciphertext = await self.transport_stream.receive_some(at_once)
                if self._state is not _OPEN:
                    self._check_open()
                data = self._take_in(ciphertext)
                if self._state is not _OPEN:
                    # What came before the fault is still good: it goes first, also when this is cancelled.
                    self._unread = data
                    # The alert, which names the fault.
                    await self._send_farewell()
                    self._unread = b""
                    if not data:
                        self._check_open()
        finally:
            self._receiving = False
        if max_bytes is None or len(data) <= max_bytes:
            return data
        self._unread = data
        return self._take_unread(max_bytes)

    def receive_nowait(self, at_once: int = RECEIVE_BYTES_MAX) -> bytes | None:
        """Return what has come of the peer's data, b"" after its close_notify, None where there is a wait.

        Over a TCPStream only, or TLS over one. At most `at_once` bytes are read from it, and at most
        CROWDED_BYTES_MAX after very many small records. Raises as receive_some does.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving from this TLS stream")
        if self._unread or self.ended or self._state is not _OPEN:
            self._check_kept()
            return self._take_unread(None)
        transport = self.transport_stream
        assert isinstance(transport, _NEVER_WAITING), "without a wait there must be a socket below"
        crowded = self._crowded
        if crowded:
            at_once = min(at_once, CROWDED_BYTES_MAX)
        ciphertext = transport.receive_nowait(at_once)
        if ciphertext is None:
            return None
        self._crowded = False
        data = self._take_in(ciphertext)
        if crowded and 2 * len(data) < len(ciphertext):
            # A few small records in between do not end it.
            self._crowded = True
        if self._state is not _OPEN:
            if self._sending is None:
                with contextlib.suppress(trio.BrokenResourceError):
                    transport.send_nowait(self._held)
            if not data:
                self._check_open()
        return data if data or self.ended else None

    def _take_in(self, ciphertext: bytes | bytearray) -> bytes:
        """Return the plaintext that came with what the transport brought; note an end or a fault."""
        size = len(ciphertext)
        try:
            if (
                size > RECORD_HEADER_BYTES
                and (ciphertext[3] << 8 | ciphertext[4]) == size - RECORD_HEADER_BYTES
                and not self._torn
            ):
                # The usual case: one record came, and it is whole.
                self._incoming.write(ciphertext)
                data = self._decrypt_record(size)
            elif size:
                data = self._decrypt(ciphertext)
            else:
                # Without OpenSSL: it would give up the session as well, of which only this connection has
                # failed (RFC 4346 7.2.1). Nor could it make anything more of what has come.
                self._break("the connection ended without a TLS close_notify")
                return b""
            if self._outgoing.pending:
                self._hold_answer()
        except BaseException:
            self._give_up()
            raise
        if self._incoming.pending:
            # It was refused, or we and OpenSSL do not agree where a record ends.
            self._give_up()
        return data

    def _hold_answer(self) -> None:
        """Keep what OpenSSL has written of itself for the next send, or for the farewell."""
        answer = self._outgoing.read()
        self._held += answer
        self._answers_bytes += len(answer)
        if self._answers_bytes > ANSWERS_BYTES_MAX:
            self._break("the peer causes answers without end")

    async def _receive_kept(self, max_bytes: int | None) -> bytes:
        """Return what a receive left behind, or the end."""
        self._check_kept()
        await trio.lowlevel.checkpoint()
        return self._take_unread(max_bytes)

    def _check_kept(self) -> None:
        if self._state is _State.CLOSED or not (self._unread or self.ended):
            self._check_open()

    def _decrypt(self, data: bytes | bytearray) -> bytes:
        """Return the plaintext of all records that are whole with `data`; note an end or a fault.

        OpenSSL gets one whole record at a time. So it never has to say that it wants more, which would be an
        exception for each; and `_incoming` stays small.
        """
        torn, self._torn = self._torn, b""
        if torn and not self._missing:
            data, torn = torn + data, b""
        size = len(data)
        end = self._missing or _end_of_record(data, 0)
        self._missing = 0
        parts: list[bytes] = []
        start = 0
        with memoryview(data) as view:
            while 0 < end <= size:
                if torn:
                    # Not joined with the rest before: that is a copy of all that has come.
                    self._incoming.write(torn)
                    torn = b""
                self._incoming.write(view[start:end])
                parts.append(self._decrypt_record(RECORD_PAYLOAD_BYTES_MAX))
                if self.ended or self._state is not _OPEN:
                    return b"".join(parts)
                start = end
                end = _end_of_record(data, start)
            self._torn = torn + view[start:]
            self._missing = end - size if end else 0
        self._crowded = len(parts) >= CROWDED_RECORDS and len(parts) * CROWDED_RECORD_BYTES > size
        return b"".join(parts)

    def _decrypt_record(self, bytes_max: int) -> bytes:
        """Return the plaintext of the record in `_incoming`; b"" for one that is not data."""
        try:
            data = self._ssl.read(bytes_max)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLZeroReturnError:
            # The peer's close_notify behind ours; before ours it is no error but b"".
            data = b""
        except ssl.SSLError as exc:
            self._break(_describe(exc))
            return b""
        if not data:
            self.ended = True
        return data

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

        Raises trio.BrokenResourceError when the connection is broken. When that, or a cancellation, has ended
        a send, nothing more can be sent, because an unknown part of the data is on its way.
        """
        if self._sending is not None or self._state is not _OPEN:
            self._check_may_send()
        self._sending = data
        try:
            if 0 < len(data) <= RECORD_BYTES_MAX and type(data) is bytes:
                # With what was held before, so more than the data.
                self._sending = ciphertext = self._encrypt(data)
                await self.transport_stream.send_all(ciphertext)
            elif data:
                view = memoryview(data).cast("B")
                for start in range(0, len(view), SEND_BYTES_MAX):
                    await self.transport_stream.send_all(self._encrypt(view[start : start + SEND_BYTES_MAX]))
            elif self._held:
                self._sending = ciphertext = self._encrypt(b"")
                await self.transport_stream.send_all(ciphertext)
            else:
                await trio.lowlevel.checkpoint()
        except BaseException:
            # Also when cancelled: some unknown part of a record has gone out.
            self._sending = _TORN
            raise
        self._sending = None

    def send_nowait(self, data: bytes) -> bool:
        """Encrypt `data`, hand the kernel what it takes at once, and return whether that is all.

        What it does not take goes in front of the next send (`send_all(b"")` waits for just that); the caller
        bounds how much that can be. Raises as send_all does.
        """
        if self._sending is not None or self._state is not _OPEN:
            self._check_may_send()
        ciphertext = self._encrypt(data)
        transport = self.transport_stream
        if isinstance(transport, TCPStream):
            try:
                sent = transport.send_nowait(ciphertext)
            except BaseException:
                self._sending = _TORN
                raise
            ciphertext = ciphertext[sent:]
        elif isinstance(transport, TLSStream):
            try:
                # What the kernel does not take is held there.
                return transport.send_nowait(ciphertext)
            except BaseException:
                self._sending = _TORN
                raise
        self._held = ciphertext
        return not ciphertext

    def send_close_notify_nowait(self) -> bool:
        """End our direction, as `send_close_notify`, as far as the kernel takes it; see `send_nowait`."""
        self._check_may_send()
        self._write_close_notify()
        return self.send_nowait(b"")

    def _check_may_send(self) -> None:
        if self._sending is not None and self._sending is not _TORN:
            raise trio.BusyResourceError("another task is already sending on this TLS stream")
        self._check_open()
        if self._sending is _TORN:
            raise trio.BrokenResourceError("an earlier send failed or was cancelled")

    def _encrypt(self, data: bytes | memoryview) -> bytes:
        """Return what is held and the records of `data`, all that go out next."""
        size = len(data)
        try:
            if size <= RECORD_BYTES_MAX:
                if size:
                    self._ssl.write(data)
                ciphertext = self._outgoing.read()
            else:
                write, read = self._ssl.write, self._outgoing.read
                parts: list[bytes] = []
                start = 0
                with memoryview(data) as view:
                    while start < size:
                        # OpenSSL takes a record at a time, and `_outgoing` stays small with only one in it.
                        start += write(view[start : start + RECORD_BYTES_MAX])
                        parts.append(read())
                ciphertext = b"".join(parts)
        except ssl.SSLError as exc:
            self._outgoing.read()
            self._break(_describe(exc))
            raise trio.BrokenResourceError(self._failure) from exc
        except BaseException:
            self._give_up()
            raise
        if self._held:
            ciphertext = self._held + ciphertext
            self._held = b""
            self._answers_bytes = 0
        return ciphertext

    async def send_close_notify(self) -> None:
        """End our direction: nothing can be sent any more, and what the peer still says is received.

        Most peers take it for the end of both directions. Raises as send_all does. It waits for a peer that
        takes nothing; when cancelled, the peer sees a truncation.
        """
        self._check_may_send()
        self._write_close_notify()
        farewell, self._held = self._held, b""
        self._sending = _TORN
        await self.transport_stream.send_all(farewell)

    def _write_close_notify(self) -> None:
        """Put our close_notify behind what is held."""
        try:
            # unwrap() writes it, and then complains that the peer's has not come.
            with contextlib.suppress(ssl.SSLError):
                self._ssl.unwrap()
            self._hold_answer()
        except BaseException:
            self._give_up()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport takes more."""
        self._check_may_send()
        self._sending = b""
        try:
            await self.transport_stream.wait_send_all_might_not_block()
        finally:
            self._sending = None

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
        if self._resumption is not None:
            self._resumption.keep(self._ssl)
        self._state = _State.CLOSED
        try:
            # A cut must look like one, and a send that need not wait would not notice that we are cancelled.
            await trio.lowlevel.checkpoint_if_cancelled()
            if was_open and self._sending is None:
                self._write_close_notify()
                await self._send_farewell()
        except BaseException:
            self._give_up()
            raise
        finally:
            await self.transport_stream.aclose()

    def close_nowait(self) -> None:
        """Close the transport, a TCPStream or TLS over one, without the farewell: the peer sees a cut."""
        transport = self.transport_stream
        assert isinstance(transport, _NEVER_WAITING), "without a wait there must be a socket below"
        if self._state is not _State.CLOSED:
            if self._resumption is not None:
                self._resumption.keep(self._ssl)
            self._state = _State.CLOSED
        transport.close_nowait()

    async def _send_farewell(self) -> None:
        if self._sending is not None:
            return
        with trio.move_on_after(FAREWELL_S):
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.transport_stream.send_all(self._held)

    def _give_up(self) -> None:
        """Leave nothing to other streams of a call that has not come to its end; this one is broken."""
        self._incoming.read()
        self._outgoing.read()
        self._break("an earlier call failed by a fault of ours")

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


# The transports that can be sent to, and received from, without a wait.
_NEVER_WAITING: Final = (TCPStream, TLSStream)


def _end_of_record(data: bytes | bytearray, start: int) -> int:
    """Return where the record that begins at `start` ends; 0 when its header is not whole."""
    if len(data) - start < RECORD_HEADER_BYTES:
        return 0
    payload_bytes = data[start + 3] << 8 | data[start + 4]
    if payload_bytes > RECORD_PAYLOAD_BYTES_MAX:
        # No record. OpenSSL shall say so now, and not when so much has come.
        return len(data)
    return start + RECORD_HEADER_BYTES + payload_bytes


def _describe(exc: ssl.SSLError | ssl.CertificateError) -> str:
    """Return one line without OpenSSL's file names and numbers."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not accepted: {exc.verify_message}"
    return f"TLS failed: {_DECORATION.sub('', str(exc.args[-1]))}"
