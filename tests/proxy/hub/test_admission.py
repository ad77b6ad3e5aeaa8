from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from auth.policy import Bundle
from proxy.head import Headers, RequestHead
from proxy.hub import admission
from proxy.hub.admission import Admission, Call, Caller, Refusal, understand
from proxy.hub.decisions import Verdict, judge
from proxy.hub.entities import Mode
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
        asked = understand(method, target)
        return self._admission.admit(head, asked, self._caller, "192.0.2.7", now)

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


def test_a_denial_is_made_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
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
    first = understand(b"GET", target)
    assert first.fault
    assert understand(b"GET", target) is not first
    assert understand(b"GET", PODS) is understand(b"GET", PODS)
