"""Nothing but reads and trusted dry runs can be sent for a preview."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.policy.ask import TRUSTED_DRY_RUN_GROUPS, Ask
from auth.policy.patterns import Names
from auth.requestinfo import PARAMETERS_MAX, BadTarget, parse
from proxy.hub.approvals.preview import probes
from proxy.hub.approvals.preview.probes import NotAllowedError, Probe

ASK = Ask(("any",))
NAMED = Ask(("any",), dry_run=Names(("*.example.com",)))

# Those that act, whatever the query says, and those of which nothing is known.
ACTING = ["token", "exec", "attach", "portforward", "proxy", "log", "start", "restart"]
HARMLESS = [
    "",
    "status",
    "scale",
    "approval",
    "ephemeralcontainers",
    "resize",
    "eviction",
    "binding",
    "finalize",
]
groups = st.sampled_from(["", "apps", "batch", "metrics.k8s.io", "things.example.com", "example.com", "Apps"])
methods = st.sampled_from(
    ["POST", "PUT", "PATCH", "GET", "DELETE", "HEAD", "OPTIONS", "post", "Patch", "BREW"]
)
parameters = st.sampled_from(
    [
        *("dryRun=All", "dryRun=", "dryRun", "d%72yRun=None", "dryRun=All;x", "dryrun=All", "dryRun=%zz"),
        *("force=true", "fieldManager=x", ";", "&", "=", "watch=1", "pretty=true", "dryRun%00=All"),
    ]
)
queries = st.lists(parameters, max_size=4).map("&".join)


@st.composite
def targets(draw: st.DrawFn) -> tuple[str, str, str]:
    """A target, with its group and its subresource."""
    group, subresource = draw(groups), draw(st.sampled_from(HARMLESS + ACTING))
    root = f"/apis/{group}" if group else "/api"
    prefix = draw(st.sampled_from(["", "/proxy", "/watch"]))
    place = draw(st.sampled_from(["", "/namespaces/shop"]))
    resource = draw(st.sampled_from(["pods", "secrets", "serviceaccounts", "nodes", "things", "namespaces"]))
    name = draw(st.sampled_from(["", "/web"]))
    sub = f"/{subresource}" if name and subresource else ""
    query = draw(queries)
    return f"{root}/v1{prefix}{place}/{resource}{name}{sub}{'?' + query if query else ''}", group, sub[1:]


@given(methods, targets(), st.sampled_from([ASK, NAMED]), st.booleans())
def test_a_dry_run_is_one_for_an_api_that_honours_it(
    method: str, target: tuple[str, str, str], ask: Ask, upgrade: bool
) -> None:
    path, group, subresource = target
    info = parse(method.encode(), path.encode())
    dry = probes.dry_run_of(info.upgraded() if upgrade else info, ask)
    if dry is None:
        return
    assert not upgrade
    assert dry.method.decode() == method
    assert method in {"POST", "PUT", "PATCH"}
    # Judged by another reader of queries, and by the literal path.
    sent_path, _, query = dry.target.decode().partition("?")
    assert sent_path == path.partition("?")[0]
    assert [value for key, value in parse_qsl(query, keep_blank_values=True) if key == "dryRun"] == ["All"]
    assert group in TRUSTED_DRY_RUN_GROUPS or (ask is NAMED and group == "things.example.com")
    assert "/proxy" not in sent_path
    if group in TRUSTED_DRY_RUN_GROUPS:
        assert subresource in HARMLESS
    assert subresource not in {"token", "exec", "attach", "portforward", "proxy"}


@given(methods, targets(), st.sampled_from([None, ASK, NAMED]))
def test_whatever_is_sent_reads_or_is_a_trusted_dry_run(
    method: str, target: tuple[str, str, str], ask: Ask | None
) -> None:
    path, _, subresource = target
    try:
        probe = Probe(method.encode(), path.encode(), trusted_by=ask)
    except (BadTarget, NotAllowedError):
        return
    if ask is None:
        assert method == "GET"
        assert subresource in HARMLESS
        assert "/proxy" not in path
        assert not probe.dry
    else:
        assert probe.info.dry_run
        assert method in {"POST", "PUT", "PATCH"}


@pytest.mark.parametrize(
    ("line", "dry"),
    [
        ("POST /api/v1/namespaces/a/pods", "/api/v1/namespaces/a/pods?dryRun=All"),
        ("POST /api/v1/namespaces/a/pods?", "/api/v1/namespaces/a/pods?dryRun=All"),
        ("PATCH /apis/apps/v1/namespaces/a/deployments/w/scale?force=1&fieldManager=k", "…&dryRun=All"),
        ("PUT /apis/x.example.com/v1/namespaces/a/xs/w", None),
        ("POST /api/v1/namespaces/a/serviceaccounts/s/token", None),
        ("POST /apis/metrics.k8s.io/v1/namespaces/a/pods", None),
        ("DELETE /api/v1/namespaces/a/pods/p", None),
        ("POST /api/v1/namespaces/a/pods?dryRun=", None),
        ("POST /api/v1/namespaces/a/pods?dryRun=None&dryRun=All", None),
        ("POST /api/v1/namespaces/a/pods?d%72yRun=x", None),
        (f"POST /api/v1/namespaces/a/pods?{'&'.join(['a'] * PARAMETERS_MAX)}", None),
        ("POST /foo/bar", None),
    ],
)
def test_dry_runs(line: str, dry: str | None) -> None:
    method, target = line.split(" ")
    probe = probes.dry_run_of(parse(method.encode(), target.encode()), ASK)
    if dry is None:
        assert probe is None
    else:
        assert probe is not None
        assert probe.target.decode() == dry.replace("…", target)
        assert probe.trusted_by is ASK


def test_a_rule_can_name_further_groups() -> None:
    info = parse(b"PUT", b"/apis/x.example.com/v1/namespaces/a/xs/w")
    assert probes.dry_run_of(info, NAMED) is not None
    token = parse(b"POST", b"/apis/x.example.com/v1/namespaces/a/xs/w/token")
    assert probes.dry_run_of(token, NAMED) is None


@pytest.mark.parametrize(
    ("line", "subresource", "target"),
    [
        ("DELETE /api/v1/namespaces/a/pods/p?x=1", "", "/api/v1/namespaces/a/pods/p"),
        ("POST /api/v1/namespaces/a/pods/p/exec?command=x", "", "/api/v1/namespaces/a/pods/p"),
        ("DELETE /api/v1/namespaces/a", "", "/api/v1/namespaces/a"),
        ("DELETE /apis/rbac.authorization.k8s.io/v1/clusterroles/system:x", "", None),
        ("PATCH /apis/apps/v1/namespaces/a/deployments/w/scale", "scale", None),
        ("GET /api/v1/namespaces/a/pods", "", ""),
        ("GET /version", "", ""),
        ("POST /api/v1/namespaces/a/pods/p/exec", "exec", ""),
    ],
)
def test_the_object_of_a_call_is_read(line: str, subresource: str, target: str | None) -> None:
    method, called = line.split(" ")
    probe = probes.read_of(parse(method.encode(), called.encode()), subresource)
    if target == "":
        assert probe is None
        return
    assert probe is not None
    assert (probe.info.verb, probe.info.subresource) == ("get", subresource)
    asked = parse(method.encode(), called.encode())
    assert (probe.info.group, probe.info.resource, probe.info.namespace, probe.info.name) == (
        asked.group,
        asked.resource,
        asked.namespace,
        asked.name,
    )
    assert target is None or probe.target.decode() == target


def test_a_collection_is_listed_by_the_selectors_of_its_deletion() -> None:
    target = (
        b"/api/v1/namespaces/a/pods?labelSelector=app%3Dx&gracePeriodSeconds=0&fieldSelector=a%3Db&limit=1"
    )
    probe = probes.list_of(parse(b"DELETE", target), 7)
    assert probe is not None
    assert probe.target == b"/api/v1/namespaces/a/pods?labelSelector=app%3Dx&fieldSelector=a%3Db&limit=7"
    assert probe.accept.startswith(b"application/json;as=PartialObjectMetadataList")
    assert probes.list_of(parse(b"DELETE", b"/api/v1/namespaces/a/pods/p"), 7) is None
    made = probes.dependants_of("a", "apps", "replicasets", 200)
    assert made is not None
    assert made.target == b"/apis/apps/v1/namespaces/a/replicasets?limit=200"
