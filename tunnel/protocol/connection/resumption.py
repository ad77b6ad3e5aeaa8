"""How a session outlives its transport (PROTOCOL.md, "Resumption")."""

from __future__ import annotations

import math

import attrs

from tunnel.protocol import frames, greetings
from tunnel.protocol.connection.drain import Drain
from tunnel.protocol.control import ControlQueue
from tunnel.protocol.errors import CloseCode, RemoteProtocolError
from tunnel.protocol.greetings import Hello, Resume, Welcome
from tunnel.protocol.ledger import ReceivedLedger, SentLedger
from tunnel.protocol.liveness import Liveness, RoundTrips
from tunnel.protocol.session.goaways import GoAways
from tunnel.protocol.session.resets import Resets
from tunnel.protocol.session.status import DETACHED, OPEN, Status

__all__ = ["RESUME_TTL_S", "Resumption"]

# A cut of 40 s is survived: found after 14 s at most, back within 7 s after the network is.
RESUME_TTL_S = 60.0


@attrs.define(eq=False)
class Resumption:
    status: Status
    control: ControlQueue
    sent: SentLedger
    received: ReceivedLedger
    resets: Resets
    goaways: GoAways
    liveness: Liveness
    round_trips: RoundTrips
    drain: Drain
    attempt: int = attrs.field(init=False, default=0)
    """The dialer's last HELLO for this session; at the listener, the one that it has gone on with."""

    @property
    def resumable(self) -> bool:
        return self.status.resume_ttl_s > 0 and self.status.phase in (OPEN, DETACHED)

    def settle(self, peer: Hello | Welcome) -> None:
        """Both sides have greeted; the limits of the peer are known."""
        status = self.status
        status.phase = OPEN
        status.peer = peer
        welcome = peer if isinstance(peer, Welcome) else status.local
        assert isinstance(welcome, Welcome)
        if frames.RESUME in peer.features and frames.RESUME in status.local.features:
            status.resume_ttl_s = min(float(welcome.resume_ttl_s), RESUME_TTL_S)
            self.sent.keeping = status.resume_ttl_s > 0

    def forgo(self) -> None:
        """Let no other transport follow this one. Not while detached: the streams wait for one."""
        assert self.status.phase is not DETACHED
        self.status.resume_ttl_s = 0.0

    def detach(self, now: float) -> None:
        """The transport is lost, and nothing more may be fed that came by it. Nothing is broken: what owners
        send from now on waits for the next transport."""
        assert self.resumable
        if self.status.phase is DETACHED:
            return
        self.status.phase = DETACHED
        self.status.detached_at = now
        self.control.forget_unsequenced()
        self.round_trips.restart()

    # --- the dialer ---

    def hello_again(self) -> Hello:
        """The dialer's HELLO for the next transport, which names this session.

        It is not sent through the drain.
        """
        status = self.status
        assert status.phase is DETACHED
        assert isinstance(status.local, Hello)
        assert isinstance(status.peer, Welcome)
        self.attempt += 1
        resume = Resume(
            status.peer.session_id,
            self.received.said(status.detached_at),
            self.sent.acknowledged,
            self.sent.next_number,
            self.attempt,
        )
        return attrs.evolve(status.local, resume=resume)

    def receive_welcome(self, welcome: Welcome, now: float) -> None:
        """Go on by the listener's answer; raises RemoteProtocolError if it does not fit."""
        sent, received, peer = self.sent, self.received, self.status.peer
        assert isinstance(peer, Welcome)
        if not welcome.resumed or welcome.session_id != peer.session_id:
            raise RemoteProtocolError("the peer goes on with another session", CloseCode.RESUME_UNKNOWN)
        if not sent.may_rewind(welcome.last_rx):
            raise RemoteProtocolError(
                f"the peer has received {welcome.last_rx} frames, and {sent.acknowledged} to "
                f"{sent.next_number} are possible",
                CloseCode.RESUME_UNKNOWN,
            )
        if welcome.next_tx < received.count:
            raise RemoteProtocolError(
                f"the peer has sent {welcome.next_tx} frames, and {received.count} were received",
                CloseCode.RESUME_UNKNOWN,
            )
        self.attach(welcome.last_rx, welcome.next_tx, now)

    # --- the listener ---

    def is_outdated(self, resume: Resume) -> bool:
        """Whether the listener has gone on with a later HELLO of the dialer than this one.

        It was held up on the way, and no dialer waits for an answer to it.
        """
        return 0 < resume.attempt <= self.attempt

    def may_attach(self, resume: Resume) -> bool:
        """Whether the listener can go on with a dialer that says this.

        Each must still have what the other lacks.
        """
        return (
            self.resumable
            and self.sent.may_rewind(resume.last_rx)
            and resume.first_tx <= self.received.count <= resume.next_tx
        )

    def attach_listener(self, resume: Resume, now: float) -> None:
        """Go on over a new transport, whose HELLO `may_attach`: WELCOME, and then what the dialer lacks."""
        assert isinstance(self.status.local, Welcome)
        welcome = attrs.evolve(
            self.status.local,
            resumed=True,
            last_rx=self.received.said(now),
            next_tx=self.sent.next_number,
            server_time_ms=self.status.wall_ms(now),
        )
        self.attempt = resume.attempt
        self.attach(resume.last_rx, resume.next_tx, now)
        self.control.greeting = greetings.welcome(welcome)

    def attach(self, peer_has: int, peer_sent: int, now: float) -> None:
        """A new transport is there; of all before it the peer has received `peer_has` frames, and sent
        `peer_sent`."""
        status = self.status
        assert status.phase is DETACHED
        status.phase = OPEN
        status.detached_at = math.inf
        self.resets.replayed_until = peer_sent
        self.sent.rewind(peer_has)
        self.drain.flight = self.drain.flight.for_next_transport()
        self.liveness.restart(now)
        self.goaways.repeat()
