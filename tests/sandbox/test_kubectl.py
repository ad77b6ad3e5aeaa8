"""The real kubectl against the sandbox alone: all API features except streams."""

from __future__ import annotations

import json
import re
import subprocess
import time

import pytest

from tests.sandbox.conftest import DEADLINE_S, Cluster

pytestmark = pytest.mark.kubectl

CONFIG_MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "notes"},
    "data": {"a": "1", "b": "2"},
}


def deployment(image: str = "one", **spec: object) -> dict[str, object]:
    labels = {"app": "web"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "labels": labels},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": [{"name": "main", "image": image, "env": [{"name": "A", "value": "1"}]}]
                },
            },
            **spec,
        },
    }


def test_version_and_health(cluster: Cluster) -> None:
    assert "Server Version: v1.36" in cluster.kubectl("version")
    assert cluster.kubectl("get", "--raw", "/healthz") == "ok"
    assert "livez check passed" in cluster.kubectl("get", "--raw", "/livez?verbose")


def test_discovery_takes_two_requests_and_none_of_their_bodies_a_second_time(cluster: Cluster) -> None:
    before = len(cluster.audit())
    listed = re.sub(" +", " ", cluster.kubectl("api-resources", "--cached=false"))
    for line in ("pods po ", "deployments deploy ", "roles "):
        assert line in listed
    uris = [str(line["requestURI"]).partition("?")[0] for line in cluster.audit()[before:]]
    assert uris == ["/api", "/apis"]
    cluster.kubectl("api-resources", "--cached=false")
    codes = [line["responseStatus"]["code"] for line in cluster.audit()[before + 2 :]]  # type: ignore[index]
    assert codes == [304, 304]


def test_the_administrator_is_who_it_says(cluster: Cluster) -> None:
    assert "[system:masters system:authenticated]" in cluster.kubectl("auth", "whoami")
    assert cluster.kubectl("auth", "can-i", "delete", "pods") == "yes\n"


def test_apply_creates_then_leaves_then_changes(cluster: Cluster, namespace: str) -> None:
    apply = ("apply", "-n", namespace, "-f", "-")
    assert cluster.kubectl(*apply, stdin=CONFIG_MAP) == "configmap/notes created\n"
    assert cluster.kubectl(*apply, stdin=CONFIG_MAP) == "configmap/notes unchanged\n"
    changed = {**CONFIG_MAP, "data": {"a": "1", "c": "3"}}
    assert cluster.kubectl(*apply, stdin=changed) == "configmap/notes configured\n"
    read = cluster.kubectl("get", "cm", "notes", "-n", namespace, "-o", "jsonpath={.data}")
    assert json.loads(read) == {"a": "1", "c": "3"}


def test_server_side_apply_and_dry_run(cluster: Cluster, namespace: str) -> None:
    apply = ("apply", "-n", namespace, "-f", "-")
    assert "created (server dry run)" in cluster.kubectl(*apply, "--dry-run=server", stdin=CONFIG_MAP)
    assert "NotFound" in cluster.refused("get", "cm", "notes", "-n", namespace)
    assert "serverside-applied" in cluster.kubectl(*apply, "--server-side", stdin=CONFIG_MAP)
    fields = ("get", "cm", "notes", "-n", namespace, "--show-managed-fields", "-o")
    managers = cluster.kubectl(*fields, "jsonpath={.metadata.managedFields[*].operation}")
    assert managers == "Apply"


def test_the_three_kinds_of_patches(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=deployment())
    patch = ("patch", "deployment", "web", "-n", namespace, "-p")
    added = {
        "spec": {
            "template": {"spec": {"containers": [{"name": "main", "env": [{"name": "B", "value": "2"}]}]}}
        }
    }
    cluster.kubectl(*patch, json.dumps(added))
    cluster.kubectl(*patch, '{"metadata": {"labels": {"tier": "front"}}}', "--type=merge")
    cluster.kubectl(*patch, '[{"op": "replace", "path": "/spec/replicas", "value": 1}]', "--type=json")
    read = json.loads(cluster.kubectl("get", "deployment", "web", "-n", namespace, "-o", "json"))
    [container] = read["spec"]["template"]["spec"]["containers"]
    assert {each["name"]: each["value"] for each in container["env"]} == {"A": "1", "B": "2"}
    assert (container["image"], read["metadata"]["labels"]["tier"]) == ("one", "front")
    assert read["spec"]["replicas"] == 1


def test_typed_clients_create_by_protobuf(cluster: Cluster, namespace: str) -> None:
    where = ("-n", namespace)
    cluster.kubectl("create", "configmap", "c", "--from-literal=k=v", *where)
    cluster.kubectl("create", "secret", "generic", "s", "--from-literal=k=v", *where)
    cluster.kubectl("create", "deployment", "d", "--image=i", "--port=80", "--replicas=0", *where)
    cluster.kubectl("create", "role", "r", "--verb=get,list", "--resource=pods,deployments.apps", *where)
    cluster.kubectl("create", "service", "clusterip", "v", "--tcp=80:8080", *where)
    assert cluster.kubectl("get", "cm", "c", "-o", "jsonpath={.data.k}", *where) == "v"
    assert cluster.kubectl("get", "secret", "s", "-o", "jsonpath={.data.k}", *where) == "dg=="
    made = json.loads(cluster.kubectl("get", "deployment", "d", "-o", "json", *where))
    assert made["spec"]["replicas"] == 0
    assert made["spec"]["template"]["spec"]["containers"][0]["ports"] == [
        {"containerPort": 80, "protocol": "TCP"}
    ]
    rules = json.loads(cluster.kubectl("get", "role", "r", "-o", "jsonpath={.rules}", *where))
    assert [(rule["apiGroups"], rule["resources"]) for rule in rules] == [
        ([""], ["pods"]),
        (["apps"], ["deployments"]),
    ]
    port = json.loads(cluster.kubectl("get", "service", "v", "-o", "jsonpath={.spec.ports[0]}", *where))
    assert (port["port"], port["targetPort"]) == (80, 8080)


def test_a_deployment_rolls_out_scales_and_goes_back(cluster: Cluster, namespace: str) -> None:
    where = ("-n", namespace)
    rolled_out = ("rollout", "status", "deployment/web", "--timeout=20s", *where)
    cluster.kubectl("create", "-f", "-", *where, stdin=deployment())
    assert "successfully rolled out" in cluster.kubectl(*rolled_out)
    cluster.kubectl("scale", "deployment", "web", "--replicas=3", *where)
    cluster.kubectl(
        "wait", "--for=jsonpath={.status.readyReplicas}=3", "deployment/web", "--timeout=20s", *where
    )
    cluster.kubectl("set", "image", "deployment/web", "main=two", *where)
    assert "successfully rolled out" in cluster.kubectl(*rolled_out)
    cluster.kubectl("rollout", "undo", "deployment/web", *where)
    assert "successfully rolled out" in cluster.kubectl(*rolled_out)
    images = cluster.kubectl("get", "pods", "-o", "jsonpath={.items[*].spec.containers[*].image}", *where)
    assert set(images.split()) <= {"one", "two"}
    history = cluster.kubectl("rollout", "history", "deployment/web", *where)
    assert [line.split()[0] for line in history.splitlines()[2:] if line] == ["2", "3"]
    described = cluster.kubectl("describe", "deployment", "web", *where)
    assert "Scaled up replica set" in described
    cluster.kubectl("delete", "deployment", "web", "--cascade=foreground", *where)
    assert cluster.run("get", "deploy,rs,pods", *where).err.startswith("No resources found")


def test_a_pod_runs_and_is_described(cluster: Cluster, namespace: str) -> None:
    where = ("-n", namespace)
    script = "echo $GREETING from $HOSTNAME; exec sleep 1000"
    run = ("run", "p", "--image=i", "--env=GREETING=hello", *where, "--command", "--", "sh", "-c", script)
    cluster.kubectl(*run)
    cluster.kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=20s", *where)
    table = cluster.kubectl("get", "pod", "p", "-o", "wide", *where).splitlines()
    assert table[0].split()[:5] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert table[1].split()[:4] == ["p", "1/1", "Running", "0"]
    described = cluster.kubectl("describe", "pod", "p", *where)
    for part in ("Status:           Running", "Successfully assigned", "Container started: p"):
        assert part in described
    assert cluster.kubectl("logs", "p", *where) == "hello from p\n"
    cluster.kubectl("delete", "pod", "p", "--grace-period=1", *where)
    assert "NotFound" in cluster.refused("get", "pod", "p", *where)


def test_a_watch_shows_changes_as_they_come(cluster: Cluster, namespace: str) -> None:
    args = cluster.argv(
        "get", "cm", "-n", namespace, "-l", "seen=yes", "-w", "-o", "json", "--output-watch-events"
    )
    watching = subprocess.Popen(args, stdout=subprocess.PIPE, text=True, env=cluster.environment)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not any(
            namespace in str(line["requestURI"]) and line["verb"] == "watch" for line in cluster.audit()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        cluster.kubectl("create", "configmap", "other", "-n", namespace)
        cluster.kubectl("create", "configmap", "one", "-n", namespace)
        cluster.kubectl("label", "configmap", "one", "seen=yes", "-n", namespace)
        cluster.kubectl("label", "configmap", "one", "more=yes", "-n", namespace)
        cluster.kubectl("label", "configmap", "one", "seen-", "-n", namespace)
        assert watching.stdout is not None
        events = [json.loads(watching.stdout.readline())["type"] for _ in range(3)]
    finally:
        watching.kill()
        watching.communicate()
    assert events == ["ADDED", "MODIFIED", "DELETED"]


def test_chunks_and_one_piece_show_the_same(cluster: Cluster, namespace: str) -> None:
    many = [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{n:02}"}} for n in range(23)]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": many})
    cluster.kubectl("create", "-n", namespace, "-f", "-", stdin=text)
    whole = cluster.kubectl("get", "cm", "-n", namespace, "-o", "name", "--chunk-size=0")
    assert cluster.kubectl("get", "cm", "-n", namespace, "-o", "name", "--chunk-size=5") == whole
    assert len(whole.splitlines()) == 24  # kube-root-ca.crt is there as well


def test_explain_knows_the_fields(cluster: Cluster) -> None:
    explained = cluster.kubectl("explain", "deployment.spec.strategy")
    assert "GROUP:      apps" in explained
    assert "rollingUpdate\t<RollingUpdateDeployment>" in explained
    assert "initContainers\t<[]Container>" in cluster.kubectl("explain", "pods.spec", "--recursive")


def test_what_no_one_could_mean_is_refused_in_the_servers_words(cluster: Cluster, namespace: str) -> None:
    apply = ("apply", "-n", namespace, "-f", "-")
    complaint = cluster.refused(*apply, stdin={**CONFIG_MAP, "datum": {}})
    assert 'strict decoding error: unknown field "datum"' in complaint
    complaint = cluster.refused(*apply, stdin=deployment(selector={"matchLabels": {"app": "other"}}))
    assert "`selector` does not match template `labels`" in complaint
    complaint = cluster.refused("create", "configmap", "Not_A_Name", "-n", namespace)
    assert 'ConfigMap "Not_A_Name" is invalid: metadata.name: Invalid value: "Not_A_Name"' in complaint
    cluster.kubectl("create", "configmap", "twice", "-n", namespace)
    complaint = cluster.refused("create", "configmap", "twice", "-n", namespace)
    assert complaint == 'error: failed to create configmap: configmaps "twice" already exists\n'


def test_rbac_decides_on_the_impersonated_user(cluster: Cluster, namespace: str) -> None:
    where = ("-n", namespace)
    cluster.kubectl("create", "role", "reader", "--verb=get,list", "--resource=pods", *where)
    cluster.kubectl("create", "rolebinding", "reader", "--role=reader", "--group=acme/dev", *where)
    identity = ("--as=agent:a", "--as-group=acme/dev", *where)
    assert cluster.run("get", "pods", *identity).code == 0
    assert cluster.refused("get", "secrets", *identity) == (
        "Error from server (Forbidden): secrets is forbidden: "
        f'User "agent:a" cannot list resource "secrets" in API group "" in the namespace "{namespace}"\n'
    )
    listed = cluster.kubectl("auth", "can-i", "--list", *identity)
    assert ["pods", "[]", "[]", "[get", "list]"] in [line.split() for line in listed.splitlines()]
    who = cluster.kubectl("auth", "whoami", "--as=agent:a", "--as-group=acme/dev", "-o", "json")
    assert json.loads(who)["status"]["userInfo"] == {
        "username": "agent:a",
        "groups": ["acme/dev", "system:authenticated"],
    }


def test_a_service_accounts_token_works_until_the_account_is_gone(cluster: Cluster, namespace: str) -> None:
    where = ("-n", namespace)
    cluster.kubectl("create", "serviceaccount", "bot", *where)
    token = cluster.kubectl("create", "token", "bot", "--duration=1h", *where).strip()
    as_bot = (
        f"--token={token}",
        "--server",
        cluster.server,
        f"--certificate-authority={cluster.folder / 'ca.crt'}",
    )
    # With another kubeconfig: the administrator's would add its token.
    (cluster.folder / "none").touch()
    whoami = cluster.run("auth", "whoami", *as_bot, kubeconfig="none")
    assert f"system:serviceaccount:{namespace}:bot" in whoami.out
    cluster.kubectl("delete", "serviceaccount", "bot", *where)
    assert "You must be logged in" in cluster.run("get", "pods", *as_bot, kubeconfig="none").err


def test_a_drained_node_has_no_pods_until_it_is_back(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("cordon", "sandbox")
    try:
        cluster.kubectl("run", "late", "--image=i", "-n", namespace)
        phase = ("get", "pod", "late", "-n", namespace, "-o", "jsonpath={.status.phase}")
        assert cluster.kubectl(*phase) == "Pending"
    finally:
        cluster.kubectl("uncordon", "sandbox")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/late", "-n", namespace, "--timeout=20s")


def test_a_drain_evicts_what_the_budget_allows(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "-n", namespace, "-f", "-", stdin=deployment())
    budget = ("pdb", "web", "-n", namespace)
    cluster.kubectl("create", *budget, "--selector=app=web", "--min-available=0")
    cluster.kubectl("wait", "--for=jsonpath={.status.disruptionsAllowed}=2", *budget, "--timeout=20s")
    try:
        assert cluster.kubectl("drain", "sandbox", "--pod-selector=app=web").count(" evicted\n") == 2
    finally:
        cluster.kubectl("uncordon", "sandbox")


def test_the_audit_log_tells_the_relays_own_acts_apart(cluster: Cluster) -> None:
    assert cluster.run("get", "pods", kubeconfig="relay.kubeconfig").code == 1
    assert cluster.run("get", "pods", "--as=agent:a", kubeconfig="relay.kubeconfig").code == 1
    own = [line for line in cluster.audit() if line.get("unimpersonated")]
    assert {line["user"]["username"] for line in own} == {"system:serviceaccount:hawse:relay"}  # type: ignore[index]
    assert [line["requestURI"] for line in own][-1].endswith("/pods?limit=500")  # type: ignore[attr-defined]
    [denied] = [line for line in cluster.audit() if "cannot impersonate" in str(line)][-1:]
    assert "unimpersonated" not in denied


def test_kubectl_top_is_told_that_there_are_no_metrics(cluster: Cluster) -> None:
    assert cluster.refused("top", "pods") == "error: Metrics API not available\n"
