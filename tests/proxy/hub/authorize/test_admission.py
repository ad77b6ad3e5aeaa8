from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pytest

from audit.record import Kind
from auth.jws import TokenError
from auth.keys import KeySet, SigningKey
from auth.policy.match import Bundle
from auth.tokens import issue_access
from proxy.hub.authorize import admission
from proxy.hub.authorize.access import AccessTokens
from proxy.hub.authorize.admission import Admission, Call, Caller, Refusal, parse_request
from proxy.hub.authorize.decisions import Verdict, judge
from proxy.hub.store.directory import Directory, open_directory
from proxy.hub.store.entities import Mode
from proxy.hub.store.store import Store
from proxy.message.head import Fields, Headers, RequestHead
from tests.auth.policies import AGENT, bundle, policy

ALL = policy("- {id: all, effect: allow, verbs: ['*'], resources: ['*', '*/*']}")
EARLY = policy("- {id: all, effect: allow, verbs: ['*'], resources: ['*'], when: 'now.getHours() < 8'}")
PROD = SimpleNamespace(name="prod", labels={}, mode=Mode.TUNNEL)
PODS = b"/clusters/prod/api/v1/namespaces/dev/pods"
UPGRADE = ((b"connection", b"upgrade"), (b"upgrade", b"websocket"))
EIGHT = 8 * 3600.0


class Asking:
    """A client that has shown its token, and how often the policies were asked about what it wants."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, policies: Bundle, headers: Headers = ()) -> None:
        self.judged = 0
        self._fields = RequestHead.of(b"GET", b"/", headers).fields
        self._admission = Admission(cast(Any, None), cast(Any, None))
        self._caller = Caller(
            "prod",
            cast(Any, SimpleNamespace(bundle=policies)),
            cast(Any, None),
            cast(Any, AGENT),
            cast(Any, PROD),
            None,
        )
        monkeypatch.setattr(admission, "judge", self._judge)
        monkeypatch.setattr(admission, "denial", lambda *_: SimpleNamespace(message="no", details={}))

    def _judge(self, *args: Any) -> Verdict:
        self.judged += 1
        return judge(*args)

    def ask(self, target: bytes, method: bytes = b"GET", now: float = 0.0) -> Call | Refusal:
        head = RequestHead(method, target, self._fields)
        parsed = parse_request(method, target)
        return self._admission.admit(head, parsed, self._caller, "192.0.2.7", now)

    @property
    def remembered(self) -> int:
        return len(self._caller.granted)


def test_what_was_granted_is_granted_again_without_asking_the_policies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking = Asking(monkeypatch, bundle(ALL))
    first, second = asking.ask(PODS), asking.ask(PODS)
    assert isinstance(first, Call)
    assert isinstance(second, Call)
    assert second.verdict is first.verdict
    assert asking.judged == 1
    assert isinstance(asking.ask(PODS, b"POST"), Call)
    assert asking.judged == 2


def test_what_the_time_may_change_is_judged_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch, bundle(EARLY))
    assert isinstance(asking.ask(PODS, now=EIGHT - 1), Call)
    assert isinstance(asking.ask(PODS, now=EIGHT), Refusal)


def test_a_denial_is_decided_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = Asking(monkeypatch, bundle(EARLY))
    for _ in range(2):
        assert isinstance(asking.ask(PODS, now=EIGHT), Refusal)
    assert asking.judged == 2


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (PODS + b"?watch=true", ()),
        (PODS + b"?labelSelector=token%3Dx", ()),
        (PODS + b"?fieldSelector=" + b"x" * 1024, ()),
        (PODS + b"/web/exec?command=ls", UPGRADE),
        (PODS + b"/web", UPGRADE),
    ],
)
def test_what_lasts_or_may_hold_a_secret_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, target: bytes, headers: Headers
) -> None:
    asking = Asking(monkeypatch, bundle(ALL), headers)
    for _ in range(2):
        assert isinstance(asking.ask(target), Call)
    assert asking.judged == 2
    assert asking.remembered == 0


def test_the_memory_of_grants_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "GRANTS_REMEMBERED_MAX", 4)
    asking = Asking(monkeypatch, bundle(ALL))
    for number in range(20):
        assert isinstance(asking.ask(PODS + b"/web-%d" % number), Call)
        assert asking.remembered <= 4


@pytest.mark.parametrize("path", [b"/api/v1/pods", b"/api/v1/%zz"])
@pytest.mark.parametrize("name", [b"access_token", b"ACCESS_TOKEN", b"%61ccess_%74oken", b"access%5f%54oken"])
def test_a_request_that_is_refused_for_its_token_is_not_remembered(path: bytes, name: bytes) -> None:
    target = b"/clusters/prod%b?%b=secret" % (path, name)
    first = parse_request(b"GET", target)
    assert first.fault
    assert parse_request(b"GET", target) is not first
    assert parse_request(b"GET", PODS) is parse_request(b"GET", PODS)


def test_an_upgrade_is_judged_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = bundle(policy("- {id: look, effect: allow, verbs: [read], resources: ['*', '*/*']}"))
    assert isinstance(Asking(monkeypatch, reads).ask(PODS + b"/web"), Call)
    assert isinstance(Asking(monkeypatch, reads, UPGRADE).ask(PODS + b"/web"), Refusal)


@pytest.mark.parametrize("upgrade", [b"h2c", b"websocket, h2c"])
def test_an_upgrade_that_is_not_served_is_judged_as_the_plain_request(
    monkeypatch: pytest.MonkeyPatch, upgrade: bytes
) -> None:
    reads = bundle(policy("- {id: look, effect: allow, verbs: [read], resources: ['*', '*/*']}"))
    asking = Asking(monkeypatch, reads, ((b"connection", b"upgrade"), (b"upgrade", upgrade)))
    call = asking.ask(PODS + b"/web")
    assert isinstance(call, Call)
    assert not call.info.upgrade
    # An exec is a create over any protocol.
    assert isinstance(asking.ask(PODS + b"/web/exec?command=id"), Refusal)


@pytest.mark.parametrize(
    ("request_", "small", "durable"),
    [
        ("GET /api/v1/pods", True, False),
        ("GET /api/v1/pods?watch=1", False, False),
        ("GET /api/v1/namespaces/dev/pods/web/log", False, False),
        ("GET /api/v1/namespaces/dev/pods/web/exec", False, True),
        ("POST /api/v1/namespaces/dev/pods", False, True),
    ],
)
def test_only_an_ordinary_read_is_small_and_what_may_act_is_durable(
    request_: str, small: bool, durable: bool
) -> None:
    method, _, target = request_.partition(" ")
    parsed = parse_request(method.encode(), b"/clusters/prod" + target.encode())
    assert (parsed.small, parsed.durable) == (small, durable)


@pytest.mark.parametrize(
    ("target", "inner"),
    [
        (b"/clusters/prod", b"/"),
        (b"/clusters/prod?x=1", b"/?x=1"),
        (b"/clusters/%b/api" % (b"a" * 63), b"/api"),
    ],
)
def test_what_follows_the_cluster_is_the_api_servers_own_path(target: bytes, inner: bytes) -> None:
    assert parse_request(b"GET", target).target == inner


@pytest.mark.parametrize(
    "target",
    [
        *(b"/", b"/clusters/", b"/clusters//api", b"/clusters/Prod/api", b"/clusters/pr%6fd/api"),
        *(
            b"/clusters/prod;x/api",
            b"/clusters/prod%2fapi",
            b"/clusters/%b/api" % (b"a" * 64),
            b"/api/v1/pods",
        ),
    ],
)
def test_a_target_that_names_no_cluster_is_none_of_any(target: bytes) -> None:
    parsed = parse_request(b"GET", target)
    assert (parsed.cluster, parsed.info) == ("", None)


# -- who asks -----------------------------------------------------------------------------------------------

ISSUER = "https://hub.example"
NOW = 1_800_000_000.0


def enrol(store: Store) -> None:
    store.add_team("sre")
    store.add_agent("ann", owner="Ann", teams=["sre"], key_hash="h1", key_hint="hws_1")
    for name in ("prod", "stage"):
        store.add_cluster(name, teams=["sre"], relay_key=SigningKey.generate().public)


@attrs.frozen
class Hub:
    directory: Directory
    key: SigningKey
    admission: Admission

    def fields(self, *headers: tuple[bytes, bytes]) -> Fields:
        """The headers of ann's client, with a token for prod."""
        principal = self.directory.current.agents_by_name["ann"].principal
        assert principal is not None
        [sid] = self.directory.current.credentials
        token = issue_access(
            self.key, issuer=ISSUER, principal=principal, cluster="prod", sid=sid, jti="j", now=NOW
        )
        return Fields(((b"authorization", b"Bearer " + token.encode()), *headers))

    def caller(self, fields: Fields, target: bytes = PODS, now: float = NOW) -> Caller:
        return self.admission.caller(RequestHead(b"GET", target, fields), parse_request(b"GET", target), now)

    def fault(self, fields: Fields, target: bytes = PODS) -> Refusal | None:
        head = RequestHead(b"GET", target, fields)
        return self.admission.fault(head, parse_request(b"GET", target), self.caller(fields))


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    key = SigningKey.generate()
    tokens = AccessTokens(lambda: KeySet([key.public]), issuer=ISSUER, org="acme")
    async with open_directory(tmp_path / "hub.db", org="acme", clock=lambda: NOW) as directory:
        await directory.change(enrol)
        yield Hub(directory, key, Admission(tokens, directory))


async def test_who_asks_is_known_from_the_same_headers_for_the_life_of_the_token(hub: Hub) -> None:
    fields = hub.fields()
    first = hub.caller(fields)
    assert hub.caller(fields, PODS + b"/web", now=NOW + 59.9) is first
    with pytest.raises(TokenError, match="expired"):
        hub.caller(fields, now=NOW + 60)


async def test_a_caller_known_for_one_cluster_is_verified_for_another(hub: Hub) -> None:
    fields = hub.fields()
    hub.caller(fields)
    with pytest.raises(TokenError, match="audience"):
        hub.caller(fields, PODS.replace(b"prod", b"stage"))


async def test_a_known_caller_is_verified_again_after_any_change(hub: Hub) -> None:
    fields = hub.fields()
    [credential] = hub.directory.current.credentials
    assert hub.caller(fields).tunnelled is not None
    await hub.directory.change(lambda store: store.lock_agent("ann"))
    locked = hub.caller(fields)
    assert locked.refusal is not None
    assert (locked.refusal.status, locked.refusal.rule, locked.tunnelled) == (403, "agent-locked", None)
    await hub.directory.change(lambda store: store.unlock_agent("ann"))
    await hub.directory.change(lambda store: store.revoke_key("ann", credential))
    with pytest.raises(TokenError, match="revoked"):
        hub.caller(fields)


async def test_a_stated_reason_is_a_claim_of_the_headers(hub: Hub) -> None:
    assert hub.caller(hub.fields()).claimed_reason == ""
    stated = hub.fields((b"hawse-reason", " the pod hängt \N{HEBREW LETTER ALEF} ".encode()))
    caller = hub.caller(stated)
    assert (caller.claimed_reason, caller.refusal) == ("the pod hängt \N{HEBREW LETTER ALEF}", None)
    assert caller.tunnelled is not None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([b"x" * 201], "the header Hawse-Reason has 201 characters, 200 is the limit"),
        ([b"a\tb"], "the header Hawse-Reason has a control character"),
        (["\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe".encode()], "the header Hawse-Reason has a control character"),
        ([b"\xff"], "the header Hawse-Reason is not UTF-8"),
        ([b"a", b"a"], "the header Hawse-Reason is given more than once"),
    ],
)
async def test_a_text_that_is_no_reason_is_refused(hub: Hub, values: list[bytes], message: str) -> None:
    fields = hub.fields(*[(b"hawse-reason", value) for value in values])
    fault = hub.fault(fields)
    assert fault is not None
    assert (fault.status, fault.rule, fault.kind) == (400, "stated-reason", Kind.MALFORMED)
    assert fault.message.startswith(message)
    assert (hub.caller(fields).tunnelled, hub.caller(fields).claimed_reason) == (None, "")


async def test_a_reason_hides_no_other_refusal(hub: Hub) -> None:
    await hub.directory.change(lambda store: store.lock_agent("ann"))
    fault = hub.fault(hub.fields((b"hawse-reason", b"x" * 201)))
    assert fault is not None
    assert fault.rule == "agent-locked"


async def test_a_faulty_request_is_refused_under_any_policy(hub: Hub) -> None:
    forged = ((b"impersonate-user", b"root"),)
    length = (b"content-length", b"1")
    for headers, target, status, rule, kind in (
        (forged, PODS, 403, "no-impersonation", Kind.HEADER_SMUGGLING),
        # The sender of a malformed request is not checked.
        (forged, PODS + b"/../x", 400, "malformed", Kind.MALFORMED),
        ((), PODS + b"?access_token=a", 400, "token-in-url", Kind.MALFORMED),
        ((*UPGRADE, length), PODS, 400, "upgrade-with-body", Kind.MALFORMED),
        ((*UPGRADE, (b"transfer-encoding", b"chunked")), PODS, 400, "upgrade-with-body", Kind.MALFORMED),
    ):
        fault = hub.fault(hub.fields(*headers), target)
        assert fault is not None
        assert (fault.status, fault.rule, fault.kind) == (status, rule, kind)
    for headers in ((), UPGRADE, (*UPGRADE, (b"content-length", b"0")), (length,)):
        assert hub.fault(hub.fields(*headers)) is None
    # A refused caller never has the short path to a relay.
    assert hub.caller(hub.fields()).tunnelled is not None
    assert hub.caller(hub.fields(*forged)).tunnelled is None
