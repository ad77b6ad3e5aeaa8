"""`POST /v1/enrol`: an agent registers the public key it generated, with a code from an operator.

    code     hwc_…, valid for 15 minutes, once
    jwk      the public key: Ed25519, as a JWK
    proof    a JWT that the key signed for this hub: it proves that the sender holds the private key
    → 201 {"agent", "org", "key_id", "kid"}
      or {"error", "error_description"}, and "hub_time" when the times in the proof are wrong: the agent signs
      another proof that is dated by the hub's time and repeats it as a claim (auth.hubtime)

For 15 minutes the same key may send the same code again and gets the same answer. The first answer may have
been lost on the way, and the agent would be left with a key and a used code.

An unauthenticated sender learns nothing from a refused code: unknown, used and expired codes get the same
answer. A valid code of a locked agent is refused with that reason, and stays valid. An address that shows too
many invalid codes is refused for a while (proxy.hub.identity.code_throttle).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
import trio

from audit.errors import AuditUnavailable
from audit.record import Event, Kind, utc
from audit.record import Response as AuditResponse
from auth.apikey import ApiKeyError, parse_code
from auth.apikey import hash as hash_key
from auth.hubtime import hub_time, is_hub_time
from auth.jws import AudienceError, TokenError
from auth.keys import KeyFormatError, PublicKey
from auth.tokens import verify_enrolment
from proxy.hub.identity.code_throttle import FORGIVEN_AFTER_S, CodeThrottle
from proxy.hub.identity.events import AgentEvents, Sender, agent_actor
from proxy.hub.identity.oauth import (
    Answer,
    Refusal,
    answer_json,
    calls_itself,
    malformed,
    parse_form,
    refuse_inactive,
    refuse_unconfirmed,
)
from proxy.hub.store.directory import Directory
from proxy.hub.store.engines.errors import ConflictError, InvalidError, NotFoundError, StoreUnavailableError
from proxy.hub.store.entities import Agent, Code
from proxy.message.head import Headers
from proxy.process.untrusted_json import read_json

ENROL_PATH = "/v1/enrol"


class Recorder(Protocol):
    """The part of the audit recorder that enrolment uses."""

    async def intent(self, event: Event) -> None:
        """Return once the event is durable; raises AuditUnavailable."""
        ...

    def complete(self, event: Event) -> None:
        """Queue the end of an action."""
        ...


@attrs.define(eq=False)
class EnrolmentEndpoint:
    """Registers the keys of agents."""

    directory: Directory
    pepper: bytes = attrs.field(repr=False)
    issuer: str
    recorder: Recorder
    clock: Callable[[], float]
    throttle: CodeThrottle = attrs.Factory(CodeThrottle)
    unwritten: int = attrs.field(init=False, default=0)
    """Valid codes that were refused because their use could not be written."""

    async def answer(self, form: bytes, headers: Headers, client_ip: str) -> Answer:
        """Answer the request. If cancelled during the write, the key is registered, and the trail records
        it.
        """
        sender = Sender("POST", ENROL_PATH, headers, client_ip)
        events = AgentEvents(self.directory, self.recorder.complete, self.clock)
        try:
            return await self._enrol(form, sender, events)
        except Refusal as refusal:
            events.refused(refusal, sender)
            return refusal.answer(self.issuer)

    async def _enrol(self, form: bytes, sender: Sender, events: AgentEvents) -> Answer:
        now = self.clock()
        if why := self.directory.refusal():
            raise refuse_unconfirmed(why)
        if self.throttle.refuses(sender.client_ip, trio.current_time()):
            description = (
                f"this address has sent too many invalid codes: wait {FORGIVEN_AFTER_S:.0f} s, then try again"
            )
            raise Refusal(429, "too_many_attempts", description, description)
        fields = parse_form(form, sender.headers)
        for name in ("code", "jwk", "proof"):
            if name not in fields:
                raise malformed("invalid_request", f"{name} is missing")
        # Check the proof before the code. Else the answer to a bad proof would show whether the code is
        # valid.
        key = self._proved_key(fields["jwk"], fields["proof"], now)
        digest, found = self._owner_of_code(fields["code"], sender, now)
        owner = found or self.directory.current.agent_keys_by_kid.get(key.kid)
        if owner is None:
            raise _not_accepted("the code is unknown, or was used")
        agent, shown = owner
        actor = agent_actor(agent, shown.label)
        event = events.make(
            Kind.KEY_REGISTERED, sender, actor=actor, status=None, effect="allow", note=f"kid={key.kid}"
        )
        try:
            await self.recorder.intent(event)
        except AuditUnavailable as error:
            self.unwritten += 1
            description = f"the audit trail cannot be written, so nothing is registered: {error}"
            return answer_json(503, {"error": "temporarily_unavailable", "error_description": description})

        def end(status: int, note: str) -> None:
            done = utc(self.clock())
            self.recorder.complete(event.completed(done, resp=AuditResponse(status), note=note))

        try:
            key_id = await self.directory.change(lambda store: store.redeem_code(digest, key))
        except (NotFoundError, ConflictError) as error:
            # Another request or the operator has used or removed the code meanwhile.
            end(401, str(error))
            return _not_accepted(str(error), agent).answer(self.issuer)
        except InvalidError as error:
            end(400, str(error))
            return malformed("invalid_request", str(error)).answer(self.issuer)
        except StoreUnavailableError as error:
            self.unwritten += 1
            end(503, str(error))
            description = "the hub cannot store the key: try again"
            return answer_json(503, {"error": "temporarily_unavailable", "error_description": description})
        except BaseException as error:
            # Only the store knows whether the key was registered.
            end(500, f"ended by {type(error).__name__}")
            raise
        end(201, f"kid={key.kid} key={key_id}{'' if found else ', answered again'}")
        return answer_json(
            201,
            {"agent": agent.name, "org": self.directory.current.org, "key_id": key_id, "kid": key.kid},
        )

    def _owner_of_code(self, text: str, sender: Sender, now: float) -> tuple[str, tuple[Agent, Code] | None]:
        """Return the code's digest and its agent; no agent for an unknown or used code. Raises Refusal."""
        try:
            digest = hash_key(parse_code(text), self.pepper)
        except ApiKeyError:
            self.throttle.failed(sender.client_ip, trio.current_time())
            raise _not_accepted("not an enrolment code") from None  # its message may contain the code
        # The dictionary is keyed by an HMAC under a secret, so lookup timing reveals nothing about a code.
        found = self.directory.current.codes_by_hash.get(digest)
        if found is None:
            self.throttle.failed(sender.client_ip, trio.current_time())
            return digest, None
        agent, code = found
        if code.expires_at <= now:
            self.throttle.failed(sender.client_ip, trio.current_time())
            raise _not_accepted("the code has expired", agent)
        if not agent.active:
            # A holder of the code may learn the agent's state. The code stays valid.
            raise refuse_inactive(agent, code)
        return digest, found

    def _proved_key(self, jwk: str, proof: str, now: float) -> PublicKey:
        try:
            key = PublicKey.from_jwk(read_json(jwk))
            if key.alg != "EdDSA" or key.kid != key.thumbprint:
                raise KeyFormatError("the key must be Ed25519, with its RFC 7638 thumbprint for a kid")
            claims = verify_enrolment(proof, key, hub_url=self.issuer, now=now)
        except ValueError as error:
            raise malformed("invalid_request", "jwk is not JSON") from error
        except KeyFormatError as error:
            raise malformed("invalid_request", f"jwk: {error}") from error
        except AudienceError as error:
            step = f"run `hawse login --hub {self.issuer} --code` with the same code"
            raise malformed("invalid_request", f"{calls_itself(self.issuer)}: {step}") from error
        except TokenError as error:
            right_time = "" if error.skew_s is None else hub_time(self.pepper, now)
            raise malformed("invalid_request", f"proof: {error.reason}", right_time) from error
        if claims.hub_time and not is_hub_time(claims.hub_time, self.pepper, claims.issued_at):
            description = "proof: it repeats a hub_time that this hub has not issued"
            raise malformed("invalid_request", description)
        return key


def _not_accepted(note: str, agent: Agent | None = None) -> Refusal:
    description = (
        "the code is not accepted: it is good once and for 15 minutes; "
        "ask the hub's operator for another (`hawse admin agent code NAME`)"
    )
    return Refusal(401, "invalid_client", description, note, agent=agent)
