"""Plain requests: what they print through Hawse is what they print straight."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import needs
from tests.system.parity import ageless
from tests.system.raw import RawClient
from tests.system.world import GROUP, NAMESPACE, POD, USER, WAYS, World, run

MANY = 500
PAGE = 50
UNSETTLED_MAX = 40
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"

SAME = [
    ["version", "-o", "json"],
    ["get", "--raw", "/healthz"],
    ["get", "--raw", "/livez"],
    ["get", "--raw", "/readyz?verbose"],
    ["get", "pods"],
    ["get", "pods", "-o", "wide"],
    ["get", "pods", "-o", "yaml"],
    ["get", "pods", "--sort-by=.metadata.name"],
    ["get", "nodes"],
    ["get", "pod", "missing"],
    ["describe", "pod", POD],
    ["explain", "pods.spec"],
    ["explain", "deployments.spec", "--api-version=apps/v1"],
    ["explain", "pods.spec.nothing"],
    ["auth", "can-i", "--list"],
    ["auth", "can-i", "delete", "nodes"],
    ["get", "secrets", "--namespace=kube-system"],
]


def manifest(name: str, **data: str) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def deployment(name: str) -> bytes:
    labels = {"app": name}
    container = {"name": "main", "image": "busybox", "command": ["sleep", "3600"]}
    value = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
            },
        },
    }
    return json.dumps(value).encode()


@pytest.mark.parametrize("args", SAME, ids=lambda args: " ".join(args)[:40])
def test_a_command_prints_the_same(world: World, args: list[str]) -> None:
    def shown(way: str) -> tuple[int, bytes, bytes]:
        done = world.kubectl(way, *args)
        return done.code, ageless(done.out), done.err

    # A cluster moves by itself: what counts is what comes between two that are the same straight.
    for _ in range(UNSETTLED_MAX):
        before, through, after = (shown(way) for way in ("straight", "tunnel", "straight"))
        if before == after:
            break
    assert before == through == after


@pytest.mark.parametrize("way", WAYS)
def test_whoami_names_the_agent_and_its_team(world: World, way: str) -> None:
    def who(by: str) -> dict[str, object]:
        done = world.kubectl(by, "auth", "whoami", "-o", "json")
        assert done.code == 0, done.err
        info: dict[str, object] = json.loads(done.out)["status"]["userInfo"]
        return info

    through, straight = who(way), who("straight")
    assert (through["username"], through["groups"]) == (USER, [GROUP, "system:authenticated"])
    assert (straight["username"], straight["groups"]) == (through["username"], through["groups"])
    assert set(through["extra"]) == {"hawse.dev/agent-id", "hawse.dev/session"}  # type: ignore[call-overload]


@needs("/metrics")
def test_the_servers_metrics_are_the_same_set(world: World) -> None:
    def names(way: str) -> list[bytes]:
        done = world.kubectl(way, "get", "--raw", "/metrics")
        assert done.code == 0, done.err
        return re.findall(rb"^# TYPE (\S+)", done.out, re.MULTILINE)

    assert set(names("straight")) <= set(names("tunnel"))


def test_discovery_takes_two_requests_and_no_body_the_second_time(world: World, tmp_path: Path) -> None:
    def statuses() -> list[object]:
        before = len(world.hub_audit())
        done = world.kubectl("tunnel", "api-resources", "--cached=false", f"--cache-dir={tmp_path}")
        assert done.code == 0, done.err
        calls = [event for event in world.hub_audit()[before:] if event["kind"] == "call"]
        targets = [event["req"]["raw_target"].partition("?")[0] for event in calls]  # type: ignore[index]
        assert sorted(targets) == ["/api", "/apis"]
        return [event["resp"]["status"] for event in calls]  # type: ignore[index]

    assert statuses() == [200, 200]
    assert statuses() == [304, 304]


@pytest.mark.parametrize("way", WAYS)
def test_a_304_has_no_body_and_leaves_the_connection_usable(world: World, way: str) -> None:
    client = RawClient(world, way)
    headers = {"Authorization": f"Bearer {client.token()}", "Accept": AGGREGATED}
    connection = http.client.HTTPSConnection(
        "127.0.0.1", world.hub_port, timeout=20, context=client.context()
    )
    with contextlib.closing(connection):

        def ask(**more: str) -> tuple[int, bytes, http.client.HTTPMessage]:
            named = {name.replace("_", "-"): value for name, value in more.items()}
            connection.request("GET", f"/clusters/{way}/apis", headers=headers | named)
            answer = connection.getresponse()
            return answer.status, answer.read(), answer.headers

        status, body, answered = ask()
        assert (status, answered["Content-Type"]) == (200, AGGREGATED)
        tag = answered["ETag"]
        assert ask(If_None_Match=tag)[:2] == (304, b"")
        assert ask()[:2] == (200, body)


@pytest.fixture(scope="module")
def many(world: World) -> Iterator[None]:
    """MANY config maps with the label `many`."""
    items = [
        {
            **manifest(f"many-{number:04}", n="x" * 200),
            "metadata": {"name": f"many-{number:04}", "labels": {"many": "yes"}},
        }
        for number in range(MANY)
    ]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items}).encode()
    world.administrator("create", f"--namespace={NAMESPACE}", "-f", "-", stdin=text)
    yield
    # One request; kubectl's own deletion by label takes its time for each.
    world.administrator("delete", "--raw", f"{CONFIG_MAPS}?labelSelector=many%3Dyes")


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("way", WAYS)
def test_a_list_in_pages_is_whole(world: World, way: str) -> None:
    listed = ("get", "configmaps", "-l", "many=yes", "-o", "name")
    before = len(world.hub_audit())
    paged = world.kubectl(way, *listed, f"--chunk-size={PAGE}")
    calls = [event["req"]["raw_target"] for event in world.hub_audit()[before:] if event["kind"] == "call"]  # type: ignore[index]
    # The last page is empty when what is left has not the label.
    assert sum(f"limit={PAGE}" in target for target in calls) in {MANY // PAGE, MANY // PAGE + 1}
    assert paged.out.splitlines() == [f"configmap/many-{number:04}".encode() for number in range(MANY)]
    assert world.kubectl(way, *listed, "--chunk-size=0").out == paged.out


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("way", WAYS)
def test_a_long_list_in_one_piece_keeps_its_sha256(world: World, way: str) -> None:
    def digest(by: str) -> str:
        done = world.kubectl(by, "get", "--raw", f"{CONFIG_MAPS}?labelSelector=many%3Dyes")
        assert len(done.out) > MANY * 200, done.err
        # The list's own version moves with every write in the cluster.
        return hashlib.sha256(re.sub(rb'"metadata":\{"resourceVersion":"\d+"\}', b"", done.out)).hexdigest()

    assert digest(way) == digest("straight")


@pytest.mark.parametrize("way", WAYS)
def test_an_object_lives_as_straight(world: World, way: str, tmp_path: Path) -> None:
    def lifecycle(by: str, name: str) -> list[tuple[int, bytes]]:
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(manifest(name, colour="green", file="yes")))
        owner = {**manifest(name, colour="red"), "kind": "ConfigMap"}
        steps: list[tuple[list[str], object]] = [
            (["create", "-f", "-"], manifest(name, colour="green")),
            (["create", "-f", "-"], manifest(name, colour="green")),
            (["get", "configmap", name, "-o", "jsonpath={.data}"], None),
            (["replace", "-f", "-"], manifest(name, colour="blue")),
            (["patch", "configmap", name, "-p", '{"data":{"a":"strategic"}}'], None),
            (["patch", "configmap", name, "--type=merge", "-p", '{"data":{"b":"merge"}}'], None),
            (["patch", "configmap", name, "--type=json", "-p", '[{"op":"remove","path":"/data/a"}]'], None),
            (
                ["patch", "configmap", name, "--type=json", "-p", '[{"op":"remove","path":"/data/none"}]'],
                None,
            ),
            (["apply", "-f", "-"], manifest(name, colour="yellow")),
            (["apply", "--server-side", "--dry-run=server", "-f", "-"], manifest(name, colour="white")),
            (["apply", "--dry-run=server", "-f", "-"], manifest(name, colour="white")),
            (["annotate", "configmap", name, "note=written"], None),
            (["label", "configmap", name, "tier=test"], None),
            (["get", "configmap", name, "-o", "jsonpath={.data} {.metadata.labels}"], None),
            (["delete", "configmap", name, "--cascade=foreground"], None),
            (["create", "--raw", CONFIG_MAPS, "-f", str(path)], None),
            (["delete", "configmap", name, "--cascade=background"], None),
            (["create", "--raw", CONFIG_MAPS, "-f", "-"], owner),
            (["delete", "configmap", name, "--cascade=orphan"], None),
            (["get", "configmap", name], None),
        ]
        results = []
        for args, document in steps:
            done = world.kubectl(by, *args, stdin=json.dumps(document).encode() if document else None)
            text = re.sub(rb'"(uid|resourceVersion|creationTimestamp|time)":"[^"]*"', rb'"\1":""', done.out)
            results.append((done.code, (text + done.err).replace(name.encode(), b"NAME")))
        return results

    assert lifecycle(way, f"life-{way}") == lifecycle("straight", f"plain-{way}")


@pytest.mark.real_cluster
def test_a_field_of_another_manager_is_a_conflict_until_it_is_forced(world: World) -> None:
    def conflict(by: str, name: str) -> list[tuple[int, bytes]]:
        apply = ("apply", "--server-side", "-f", "-")
        results = []
        for more, colour in (
            (("--field-manager=one",), "green"),
            (("--field-manager=two",), "blue"),
            (("--field-manager=two", "--force-conflicts"), "blue"),
        ):
            text = json.dumps(manifest(name, colour=colour)).encode()
            done = world.kubectl(by, *apply, *more, stdin=text)
            results.append((done.code, (done.out + done.err).replace(name.encode(), b"NAME")))
        return results

    through = conflict("tunnel", "owned-through")
    assert through == conflict("straight", "owned-straight")
    assert [code for code, _ in through] == [0, 1, 0]


@pytest.mark.parametrize("way", WAYS)
def test_the_body_of_a_delete_arrives(world: World, way: str) -> None:
    owner, held = f"owner-{way}", f"held-{way}"
    assert world.kubectl(way, "create", "-f", "-", stdin=json.dumps(manifest(owner)).encode()).code == 0
    uid = world.kubectl(way, "get", "configmap", owner, "-o", "jsonpath={.metadata.uid}").out.decode()
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": owner,
        "uid": uid,
        "blockOwnerDeletion": True,
    }
    metadata = {"name": held, "finalizers": ["acme.example/hold"], "ownerReferences": [reference]}
    dependent = {**manifest(held), "metadata": metadata}
    assert world.kubectl(way, "create", "-f", "-", stdin=json.dumps(dependent).encode()).code == 0
    try:
        deleted = world.kubectl(way, "delete", "configmap", owner, "--cascade=foreground", "--wait=false")
        assert deleted.code == 0, deleted.err
        # Only the options in the body say foreground, and only foreground waits for what is held.
        finalizers = world.kubectl(way, "get", "configmap", owner, "-o", "jsonpath={.metadata.finalizers}")
        assert finalizers.out == b'["foregroundDeletion"]', finalizers.err
    finally:
        world.kubectl(
            way, "patch", "configmap", held, "--type=merge", "-p", '{"metadata":{"finalizers":null}}'
        )
    gone = world.kubectl(way, "wait", "--for=delete", f"configmap/{owner}", "--timeout=60s", deadline_s=90)
    assert gone.code == 0, gone.err


def test_diff_shows_what_would_change(world: World) -> None:
    name = "differs"
    assert (
        world.kubectl("tunnel", "apply", "-f", "-", stdin=json.dumps(manifest(name, a="1")).encode()).code
        == 0
    )

    def differences(way: str) -> tuple[int, list[bytes]]:
        done = world.kubectl(way, "diff", "-f", "-", stdin=json.dumps(manifest(name, a="2")).encode())
        return done.code, [line for line in done.out.splitlines() if re.match(rb"[-+] ", line)]

    through = differences("tunnel")
    assert through == differences("straight")
    assert through == (1, [b'-  a: "1"', b'+  a: "2"'])


def test_edit_sends_what_the_editor_left(world: World) -> None:
    name = "edited"
    assert world.kubectl("tunnel", "create", "configmap", name, "--from-literal=a=green").code == 0
    environment = {**world.agent, "KUBE_EDITOR": "sed -i s/green/blue/"}
    done = run(world.command("tunnel", "edit", "configmap", name), environment)
    assert (done.code, done.out) == (0, f"configmap/{name} edited\n".encode()), done.err
    assert world.kubectl("tunnel", "get", "configmap", name, "-o", "jsonpath={.data.a}").out == b"blue"


@needs("apps")
@pytest.mark.parametrize("way", WAYS)
def test_a_deployment_rolls_out_scales_and_goes_back(world: World, way: str) -> None:
    name = f"web-{way}"

    def must(*args: str, stdin: bytes | None = None) -> bytes:
        done = world.kubectl(way, *args, stdin=stdin, deadline_s=150)
        assert done.code == 0, done.err
        return done.out

    rolled_out = ("rollout", "status", f"deployment/{name}", "--timeout=120s")
    must("create", "-f", "-", stdin=deployment(name))
    assert b"successfully rolled out" in must(*rolled_out)
    must("scale", f"deployment/{name}", "--replicas=2")
    must("wait", "--for=jsonpath={.status.readyReplicas}=2", f"deployment/{name}", "--timeout=120s")
    must("set", "image", f"deployment/{name}", "main=busybox:1.37")
    assert b"successfully rolled out" in must(*rolled_out)
    assert b"rolled back" in must("rollout", "undo", f"deployment/{name}")
    assert b"successfully rolled out" in must(*rolled_out)
    image = "jsonpath={.spec.template.spec.containers[0].image}"
    assert must("get", "deployment", name, "-o", image) == b"busybox"
    must("delete", "deployment", name, "--cascade=foreground", "--timeout=60s")


@needs("v1/serviceaccounts/token")
def test_create_token_brings_a_token(world: World) -> None:
    done = world.kubectl("tunnel", "create", "token", "default", "--duration=10m")
    assert done.code == 0, done.err
    assert re.fullmatch(rb"[\w.-]{40,}\n?", done.out)


def test_a_stale_hash_of_a_schema_is_redirected_under_the_clusters_own_prefix(world: World) -> None:
    client = RawClient(world, "tunnel")
    answer = client.get("/openapi/v3/api/v1?hash=stale")
    assert answer.status == 301
    prefix = f"/clusters/{client.way}"
    location = answer.headers["location"]
    assert location.startswith(f"{prefix}/openapi/v3/api/v1?hash=")
    assert client.get(location.removeprefix(prefix)).status == 200


@needs("apiextensions.k8s.io")
def test_explain_knows_a_kind_of_the_clusters_own(world: World) -> None:
    plural, group = "anchors", f"e2e{os.getpid()}.hawse.example"
    schema = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"depth": {"type": "integer"}}}},
    }
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": "anchor", "kind": "Anchor"},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }
    world.administrator("create", "-f", "-", stdin=json.dumps(definition).encode())
    try:
        world.administrator("wait", "--for=condition=Established", f"crd/{plural}.{group}", "--timeout=30s")
        explain = ("explain", f"{plural}.spec", f"--api-version={group}/v1")
        # Discovery and schemas follow a moment later.
        for _ in range(UNSETTLED_MAX):
            straight = world.kubectl("straight", *explain)
            if straight.code == 0:
                break
        assert world.kubectl("tunnel", *explain) == straight
        assert b"depth" in straight.out
    finally:
        world.administrator("delete", "crd", f"{plural}.{group}")


@needs("certificates.k8s.io")
def test_a_certificate_request_is_approved(world: World) -> None:
    from base64 import b64encode

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.x509.oid import NameOID

    name = f"hawse-e2e-{os.getpid()}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    request = builder.sign(generate_private_key(SECP256R1()), hashes.SHA256())
    document = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": b64encode(request.public_bytes(serialization.Encoding.PEM)).decode(),
            "signerName": "kubernetes.io/kube-apiserver-client",
            "usages": ["client auth"],
            "expirationSeconds": 600,
        },
    }
    created = world.kubectl("tunnel", "create", "-f", "-", stdin=json.dumps(document).encode())
    assert created.code == 0, created.err
    try:
        approved = world.kubectl("tunnel", "certificate", "approve", name)
        assert (approved.code, approved.out.split()[-1]) == (0, b"approved"), approved.err
    finally:
        world.administrator("delete", "csr", name)


@needs("metrics.k8s.io")
def test_top_prints_the_pods(world: World) -> None:
    done = world.kubectl("tunnel", "top", "pods")
    assert done.code == 0, done.err
