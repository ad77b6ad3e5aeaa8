"""The cluster owner's guardrails: read whole or refused, asked of every request, out of the hub's reach."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auth.policy.text import PolicyError
from auth.principal import Principal
from auth.requestinfo import parse
from auth.tokens import RelayClaims
from proxy.message.relay_marks import guardrail_of
from proxy.message.status import STATUS_BYTES_MAX
from proxy.process.files import FILE_BYTES_MAX
from proxy.relay.guardrails import FAULT_LOGGED_EVERY_S, FILES_MAX, GuardrailDenied, Guardrails
from tests.proxy.relay.apiserver import OK, Connection, running
from tests.proxy.relay.guardrail_files import NO_SECRETS, GuardrailClock, guardrails
from tests.proxy.relay.ways import PROBE, inner, open_way, token

both_modes = pytest.mark.parametrize("mode", ["tunnel", "direct"])

ONLY_PODS = """
kind: Policy
metadata: {name: owner}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: look, effect: allow, verbs: [read], resources: [pods, pods/log], namespaces: ["app-*"]}
"""


def claims(name: str = "probe", *groups: str) -> RelayClaims:
    return RelayClaims(f"agent:{name}", groups or ("acme/platform",), "a1", "s1", "j1", 0, 60)


def denied(
    guardrails: Guardrails, target: bytes, *, method: bytes = b"GET", who: RelayClaims | None = None
) -> str:
    """The rule that denies a request; empty when it passes."""
    try:
        guardrails.check(who or claims(), parse(method, target))
    except GuardrailDenied as error:
        return error.rule
    return ""


# -- decisions


def test_guardrails_that_only_deny_pass_all_other_requests(tmp_path: Path) -> None:
    rails = guardrails(tmp_path, NO_SECRETS)
    assert denied(rails, b"/api/v1/namespaces/a/secrets/x") == "owner/no-secrets"
    assert denied(rails, b"/api/v1/secrets") == "owner/no-secrets"
    assert denied(rails, b"/api/v1/namespaces/a/pods") == ""
    assert denied(rails, b"/metrics") == ""
    assert denied(rails, b"/api/v1/namespaces/a/pods/p/exec?command=id", method=b"POST") == ""


def test_guardrails_that_allow_deny_all_other_requests(tmp_path: Path) -> None:
    rails = guardrails(tmp_path, ONLY_PODS)
    assert denied(rails, b"/api/v1/namespaces/app-1/pods") == ""
    assert denied(rails, b"/api/v1/namespaces/app-1/pods/p/log?follow=1") == ""
    # Without discovery no client works.
    assert denied(rails, b"/apis") == ""
    for target in (
        b"/api/v1/pods",
        b"/api/v1/namespaces/other/pods",
        b"/api/v1/namespaces/app-1/pods/p/exec?command=id",
        b"/api/v1/namespaces/app-1/secrets",
        b"/metrics",
    ):
        assert denied(rails, target) == "no-rule-allows", target
    assert denied(rails, b"/api/v1/namespaces/app-1/pods/p", method=b"DELETE") == "no-rule-allows"


def test_an_allowing_rule_that_is_switched_off_still_closes_the_rest(tmp_path: Path) -> None:
    # Disabling a permission must not allow everything.
    rails = guardrails(tmp_path, ONLY_PODS.replace("id: look,", "id: look, enabled: false,"))
    assert denied(rails, b"/api/v1/namespaces/app-1/pods") == "no-rule-allows"


@pytest.mark.parametrize("namespace", ["", "hawse"])
def test_a_denying_rule_beside_an_allowing_one_allows_nothing_more(tmp_path: Path, namespace: str) -> None:
    (tmp_path / "a.yaml").write_text(ONLY_PODS)
    if not namespace:
        (tmp_path / "b.yaml").write_text(NO_SECRETS.replace("owner,", "more,"))
    rails = Guardrails(tmp_path, namespace=namespace)
    assert denied(rails, b"/api/v1/namespaces/app-1/pods") == ""
    assert denied(rails, b"/api/v1/nodes") == "no-rule-allows"


def test_rules_bind_teams_and_agents_as_the_token_names_them(tmp_path: Path) -> None:
    rails = guardrails(tmp_path, NO_SECRETS.replace('teams: ["*"]', 'agents: ["ci-*"], teams: [sre]'))
    secret = b"/api/v1/namespaces/a/secrets/x"
    assert denied(rails, secret) == ""
    assert denied(rails, secret, who=claims("ci-1")) == "owner/no-secrets"
    assert denied(rails, secret, who=claims("probe", "acme/web", "acme/sre")) == "owner/no-secrets"


def test_a_denial_names_the_rule_the_alternative_and_the_owner(tmp_path: Path) -> None:
    rails = guardrails(tmp_path, NO_SECRETS)
    with pytest.raises(GuardrailDenied) as caught:
        rails.check(claims(), parse(b"DELETE", b"/api/v1/namespaces/a/secrets/x"))
    status = json.loads(caught.value.body)
    assert status["message"] == (
        "the guardrails of this cluster: delete of secrets x in namespace a is denied by owner/no-secrets: "
        "they are ours; instead: ask for a copy; ask #cluster-prod"
    )
    assert (status["reason"], status["code"]) == ("Forbidden", 403)
    assert status["details"]["causes"] == [
        {"reason": "GuardrailDenied", "message": "owner/no-secrets", "field": "rule"},
        {"reason": "GuardrailDenied", "message": "ask for a copy", "field": "instead"},
        {"reason": "GuardrailDenied", "message": "#cluster-prod", "field": "ask"},
    ]
    assert len(caught.value.body) <= STATUS_BYTES_MAX
    assert guardrail_of(caught.value.head) == "owner/no-secrets"
    rails = guardrails(tmp_path, ONLY_PODS)
    with pytest.raises(GuardrailDenied, match="ask the owner of this cluster") as caught:
        rails.check(claims(), parse(b"GET", b"/metrics"))
    causes = json.loads(caught.value.body)["details"]["causes"]
    assert [cause["field"] for cause in causes] == ["rule", "ask"]


def test_the_relays_own_namespace_is_closed_where_there_are_guardrails(tmp_path: Path) -> None:
    (tmp_path / "rails").mkdir()
    open_ = Guardrails(tmp_path / "rails", namespace="hawse")
    assert denied(open_, b"/api/v1/namespaces/hawse/configmaps/x", method=b"PATCH") == ""
    (tmp_path / "rails" / "a.yaml").write_text(NO_SECRETS.replace("secrets", "nodes"))
    rails = Guardrails(tmp_path / "rails", namespace="hawse")
    for method, target in (
        (b"PATCH", b"/api/v1/namespaces/hawse/configmaps/hawse-relay-guardrails"),
        (b"DELETE", b"/apis/apps/v1/namespaces/hawse/deployments/hawse-relay"),
        (b"DELETE", b"/api/v1/namespaces/hawse"),
        (b"GET", b"/api/v1/namespaces/hawse/pods/x/exec?command=id"),
        (b"GET", b"/api/v1/namespaces/hawse/secrets/hawse-relay-keys"),
        (b"GET", b"/api/v1/secrets"),
    ):
        assert denied(rails, target, method=method) == "relay/own-namespace", target
    assert denied(rails, b"/api/v1/pods") == ""
    (tmp_path / "rails" / "b.yaml").write_text(NO_SECRETS.replace("name: owner", "name: relay"))
    with pytest.raises(PolicyError, match='the policy "relay" stands in'):
        Guardrails(tmp_path / "rails", namespace="hawse")


def test_conditions_see_the_request_and_the_agent(tmp_path: Path) -> None:
    text = NO_SECRETS.replace("resources: [secrets]", "when: request.name == 'x' && 'sre' in agent.teams")
    rails = guardrails(tmp_path, text)
    secret = b"/api/v1/namespaces/a/secrets/x"
    assert denied(rails, secret) == ""
    assert denied(rails, secret, who=claims("probe", "acme/sre")) == "owner/no-secrets"


def test_a_condition_may_compare_with_any_word(tmp_path: Path) -> None:
    text = NO_SECRETS.replace("resources: [secrets]", "when: \"request.name in ['agent', 'cluster']\"")
    assert denied(guardrails(tmp_path, text), b"/api/v1/namespaces/a/secrets/agent") == "owner/no-secrets"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (NO_SECRETS, "1 rule, the rest passes ("),
        (ONLY_PODS, "1 rule, what no rule allows is denied ("),
        ("", "no guardrails in {}: what the hub allows passes"),
    ],
)
def test_the_guardrails_in_force_are_summarised_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, told: str
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "a.yaml").write_text(text)
    rails = Guardrails(tmp_path)
    assert told.format(tmp_path) in rails.summary
    assert [record.getMessage() for record in caplog.records] == [rails.summary]


# -- refused files


def faults(folder: Path, text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        guardrails(folder, text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "holds no policy"),
        ("rules: [", "not valid YAML"),
        (NO_SECRETS.replace("verbs", "verb"), "verb"),
        (NO_SECRETS.replace("effect: deny", "effect: block"), "block"),
        (NO_SECRETS.replace("spec:", "spec:\n  clusters: {matchLabels: {env: prod}}"), "leave clusters out"),
        (
            ONLY_PODS.replace("id: look,", "id: look, obligations: {maxDuration: 10m},"),
            "rule look: a guardrail allows or denies a request",
        ),
        (
            NO_SECRETS.replace("effect: deny", "effect: ask, ask: {approvers: [any]}"),
            "a guardrail allows or denies a request: the hub asks about requests",
        ),
        (NO_SECRETS.replace("resources: [secrets]", "when: request.nme == 'x'"), "request.nme"),
    ],
)
def test_a_fault_refuses_all_of_it(tmp_path: Path, text: str, fault: str) -> None:
    message = faults(tmp_path, text)
    assert fault in message
    assert "guardrails.yaml" in message


@pytest.mark.parametrize(
    ("condition", "unknown"),
    [
        ("cluster.name == 'prod'", "cluster"),
        ("agent.owner == 'ada'", "agent.owner"),
        ("agent . owner == 'ada'", "agent . owner"),
        ("agent['owner'] == 'ada'", "agent"),
        ("(agent).owner == 'ada'", "agent"),
        ("[agent].exists(who, who.owner == 'ada')", "agent"),
    ],
)
def test_a_condition_on_a_fact_that_a_relay_lacks_is_refused(
    tmp_path: Path, condition: str, unknown: str
) -> None:
    """With a condition on an unknown owner, the rule would let everything pass."""
    message = faults(tmp_path, NO_SECRETS.replace("resources: [secrets]", f'when: "{condition}"'))
    assert f'a relay does not know "{unknown}"' in message


def test_conditions_need_their_package_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cel", "cel.cel"):
        monkeypatch.setitem(sys.modules, name, None)
    assert denied(guardrails(tmp_path, NO_SECRETS), b"/api/v1/secrets") == "owner/no-secrets"
    text = NO_SECRETS.replace("resources: [secrets]", "when: request.name == 'x'")
    assert "pip install common-expression-language" in faults(tmp_path, text)


def test_a_folder_is_read_whole_and_may_be_empty(tmp_path: Path) -> None:
    rails = Guardrails(tmp_path)
    assert denied(rails, b"/api/v1/secrets") == ""
    # As Kubernetes mounts a ConfigMap.
    data = tmp_path / "..2026"
    data.mkdir()
    (data / "a.yaml").write_text(NO_SECRETS)
    (tmp_path / "a.yaml").symlink_to(data / "a.yaml")
    (tmp_path / "b.yml").write_text(NO_SECRETS.replace("owner,", "more,").replace("secrets", "nodes"))
    rails = Guardrails(tmp_path)
    assert denied(rails, b"/api/v1/secrets") == "owner/no-secrets"
    assert denied(rails, b"/api/v1/nodes") == "more/no-nodes"
    (tmp_path / "guardrails.yaml.txt").write_text(NO_SECRETS)
    with pytest.raises(PolicyError, match=r"guardrails\.yaml\.txt:1: is no \.yaml or \.yml file"):
        Guardrails(tmp_path)
    (tmp_path / "guardrails.yaml.txt").unlink()
    (tmp_path / "c.yaml").mkdir()
    with pytest.raises(PolicyError, match=r"c\.yaml:1: is no \.yaml or \.yml file"):
        Guardrails(tmp_path)


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as refused:
        Guardrails(tmp_path / "missing.yaml")
    assert str(refused.value) == f"{tmp_path / 'missing.yaml'} cannot be read: No such file or directory"
    (tmp_path / "guardrails.yaml").write_bytes(b"\xff")
    with pytest.raises(PolicyError, match="not text in UTF-8"):
        Guardrails(tmp_path / "guardrails.yaml")


# -- what changes


def test_files_too_many_too_large_or_unreadable_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "00.yaml"
    for number in range(FILES_MAX + 1):
        (tmp_path / f"{number:02}.yaml").write_text("")
    with pytest.raises(PolicyError, match=f"{FILES_MAX + 1} files exceed the {FILES_MAX} allowed"):
        Guardrails(tmp_path)
    (tmp_path / f"{FILES_MAX}.yaml").unlink()
    Guardrails(tmp_path)
    file.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(PolicyError, match="is larger than"):
        Guardrails(file)
    file.unlink()
    # A file that exists and cannot be opened, even by root.
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(file))
        with pytest.raises(PolicyError, match="cannot be read: No such device"):
            Guardrails(file)


def test_a_change_is_in_force_at_the_next_look(tmp_path: Path) -> None:
    rails = guardrails(tmp_path, NO_SECRETS)
    assert not rails.look()
    assert denied(rails, b"/api/v1/nodes") == ""
    (tmp_path / "new").write_text(NO_SECRETS.replace("secrets", "nodes"))
    (tmp_path / "new").replace(tmp_path / "guardrails.yaml")
    assert rails.look()
    assert denied(rails, b"/api/v1/nodes") == "owner/no-nodes"
    assert denied(rails, b"/api/v1/secrets") == ""
    assert not rails.look()


@pytest.mark.parametrize("change", ["broken", "gone"])
def test_a_bad_change_keeps_the_former_guardrails_and_is_logged_repeatedly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    caplog.set_level(logging.ERROR)
    clock = GuardrailClock()
    rails = guardrails(tmp_path, NO_SECRETS, clock)
    file = tmp_path / "guardrails.yaml"

    def bad() -> None:
        if change == "broken":
            file.write_text(NO_SECRETS.replace("rules", "rulez"))
        else:
            file.unlink()

    bad()
    for _ in range(10):
        assert not clock.advance(rails)
        assert denied(rails, b"/api/v1/secrets") == "owner/no-secrets"
    assert len(caplog.records) == 1
    assert "the former ones stay in force" in caplog.text
    assert ("rulez" if change == "broken" else "No such file") in caplog.text
    clock.advance(rails, FAULT_LOGGED_EVERY_S)
    assert denied(rails, b"/api/v1/secrets") == "owner/no-secrets"
    assert len(caplog.records) == 2
    # Once fixed, the file is in force, and the same error counts as a new one.
    file.write_text(NO_SECRETS.replace("secrets", "nodes"))
    assert clock.advance(rails)
    assert denied(rails, b"/api/v1/nodes") == "owner/no-nodes"
    bad()
    assert not clock.advance(rails)
    assert len(caplog.records) == 3


def test_guardrails_that_are_all_gone_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = GuardrailClock()
    (tmp_path / "a.yaml").write_text(NO_SECRETS)
    rails = Guardrails(tmp_path, monotonic=lambda: clock.now)
    os.unlink(tmp_path / "a.yaml")
    clock.advance(rails)
    assert denied(rails, b"/api/v1/secrets") == "owner/no-secrets"
    assert "all guardrails were removed" in caplog.text


# -- a hub that mints and sends any token


async def answer_ok(connection: Connection) -> None:
    while await connection.request():
        await connection.send(OK)


@both_modes
async def test_a_denied_request_never_reaches_the_api_server(mode: str, tmp_path: Path) -> None:
    rails = guardrails(tmp_path, NO_SECRETS)
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path, rails) as way:
        answer = await way.ask(inner(b"/api/v1/namespaces/a/secrets/x"))
        assert answer.failure is None
        assert answer.status == 403
        assert answer.head is not None
        assert guardrail_of(answer.head) == "owner/no-secrets"
        assert json.loads(answer.body)["reason"] == "Forbidden"
        head = inner(b"/api/v1/namespaces/a/secrets", (b"content-length", b"4"), method=b"POST")
        assert (await way.ask(head, b"body")).status == 403
        head = inner(b"/api/v1/namespaces/a/secrets/x", method=b"HEAD")
        refused = await way.ask(head)
        assert (refused.status, refused.body) == (403, b"")
        assert server.received == b""
        # The way is as good as before.
        assert (await way.ask(inner(b"/api/v1/pods"))).status == 200


@both_modes
async def test_an_upgrade_is_denied_like_any_request(mode: str, tmp_path: Path) -> None:
    rails = guardrails(tmp_path, ONLY_PODS)
    upgrade = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path, rails) as way:
        target = b"/api/v1/namespaces/app-1/pods/p/exec?command=id"
        answer = await way.ask(inner(target, *upgrade))
        assert answer.status == 403
        assert server.received == b""


READ_ALL = """
kind: Policy
metadata: {name: owner}
spec:
  bind: {teams: ["*"]}
  rules:
    - {id: look, effect: allow, verbs: [read], resources: ["*", "*/*"]}
"""


@both_modes
async def test_a_read_only_agent_upgrades_only_to_watch(mode: str, tmp_path: Path) -> None:
    upgrade = ((b"connection", b"Upgrade"), (b"upgrade", b"websocket"))
    console = b"/apis/subresources.kubevirt.io/v1/namespaces/a/virtualmachineinstances/vm/console"
    rails = guardrails(tmp_path, READ_ALL)
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path, rails) as way:
        assert (await way.ask(inner(console, *upgrade))).status == 403
        assert server.received == b""
        assert (await way.ask(inner(console))).status == 200
        assert (await way.ask(inner(b"/api/v1/pods?watch=true", *upgrade))).status == 200


@both_modes
async def test_an_exec_is_no_read_with_any_upgrade(mode: str, tmp_path: Path) -> None:
    rails = guardrails(tmp_path, READ_ALL)
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path, rails) as way:
        target = b"/api/v1/namespaces/app-1/pods/p/exec?command=id"
        for asked in (b"h2c", b"websocket, h2c"):
            upgrade = ((b"connection", b"Upgrade"), (b"upgrade", asked))
            assert (await way.ask(inner(target, *upgrade))).status == 403
        assert server.received == b""


SLUGS = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True).filter(
    lambda name: name not in {"system", "kubernetes"}
)
TARGETS = st.sampled_from(
    [
        b"/api/v1/secrets",
        b"/api/v1/secrets?watch=1",
        b"/api/v1/watch/secrets",
        b"/api/v1/namespaces/app-1/secrets",
        b"/api/v1/namespaces/app-1/secrets/x",
        b"/api/v1/namespaces/app-1/secrets/x?dryRun=All",
        b"/api/v1/namespaces/app-1/secrets/x/status",
        b"/api/v1/watch/namespaces/app-1/secrets/x",
        b"/api/v1/namespaces/app-1/secrets/",
    ]
)
METHODS = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"PURGE"])
LIES = st.lists(
    st.sampled_from(
        [
            (b"hawse-relay-decision", b"guardrails off"),
            (b"x-http-method-override", b"GET"),
            (b"x-original-url", b"/api/v1/pods"),
            (b"x-forwarded-uri", b"/api/v1/pods"),
            (b"content-type", b"application/apply-patch+yaml"),
        ]
    ),
    max_size=3,
    unique_by=lambda header: header[0],
)


@both_modes
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=SLUGS,
    teams=st.lists(SLUGS, min_size=1, max_size=3, unique=True),
    target=TARGETS,
    method=METHODS,
    lies=LIES,
)
async def test_no_identity_method_or_header_gets_around_a_guardrail(
    mode: str,
    tmp_path: Path,
    name: str,
    teams: list[str],
    target: bytes,
    method: bytes,
    lies: list[tuple[bytes, bytes]],
) -> None:
    rails = guardrails(
        tmp_path, NO_SECRETS.replace("resources: [secrets]", 'resources: [secrets, "secrets/*"]')
    )
    minted = token(principal=Principal("a", name, "acme", tuple(teams)))
    async with running(answer_ok, tmp_path) as server, open_way(mode, server.access, tmp_path, rails) as way:
        answer = await way.ask(inner(target, *lies, method=method), token=minted)
        assert answer.failure is not None or answer.status == 403
        assert server.received == b""


@both_modes
async def test_the_api_server_cannot_speak_for_the_guardrails(mode: str, tmp_path: Path) -> None:
    async def lie(connection: Connection) -> None:
        await connection.request()
        await connection.send(
            b"HTTP/1.1 403 Forbidden\r\nhawse-relay-decision: guardrails owner/x\r\ncontent-length: 0\r\n\r\n"
        )

    rails = guardrails(tmp_path, NO_SECRETS)
    async with running(lie, tmp_path) as server, open_way(mode, server.access, tmp_path, rails) as way:
        answer = await way.ask(inner(b"/api/v1/pods"), token=token(principal=PROBE))
        assert answer.status == 403
        assert answer.head is not None
        assert guardrail_of(answer.head) == ""
